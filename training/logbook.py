"""`Logbook`: a line on the terminal and a record in log.jsonl."""

import json
from pathlib import Path
from typing import Any

import torch

from training.evaluate import Accuracy, table
from training.supply import Tally
from training.trainer import StepReport

Record = dict[str, Any]


class Logbook:
    """Writes to `folder`/log.jsonl, one JSON object a line; an existing one is continued."""

    def __init__(self, folder: Path, *, fresh: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "log.jsonl"
        if fresh:
            self._file.unlink(missing_ok=True)

    def write(self, kind: str, **content: Any) -> None:
        """Append one record."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **content}) + "\n")

    def steps(
        self,
        elapsed_s: float,
        step: int,
        seconds: float,
        reports: list[StepReport],
        tally: Tally,
        imbalance: float,
    ) -> None:
        """What the steps of the last `seconds` were like."""
        loss = sum(report.loss for report in reports) / len(reports)
        sight = sum(report.sight for report in reports) / len(reports)
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        content = {
            "elapsed_s": round(elapsed_s, 1),
            "step": step,
            "loss": loss,
            "sight": sight,
            "norm": reports[-1].norm,
            "lr": reports[-1].learning_rate,
            "skipped": sum(report.skipped for report in reports),
            "steps_per_s": len(reports) / seconds,
            "samples_per_s": tally.samples / seconds,
            "tokens_per_s": tally.tokens / seconds,
            "patches_per_s": tally.patches / seconds,
            "fresh_samples_per_s": tally.fresh_samples / seconds,
            "fresh_share": tally.fresh / max(tally.used, 1),
            "data_wait_share": tally.wait_s / seconds,
            "memory_bytes": memory,
            "expert_load": imbalance,
        }
        self.write("steps", **content)
        print(
            f"{elapsed_s:7.0f} s  step {step:6d}  loss {loss:7.4f}  "
            f"sight {sight:7.4f}  "
            f"lr {reports[-1].learning_rate:.2e}  {tally.samples / seconds:6.0f} samples/s "
            f"({tally.fresh_samples / seconds:.0f} fresh)  {tally.tokens / seconds / 1e3:6.1f} "
            f"ktokens/s  fresh {100 * content['fresh_share']:3.0f} %  waiting "
            f"{100 * content['data_wait_share']:3.0f} %  memory {memory / 1e9:.1f} GB  "
            f"experts max/mean {imbalance:.2f}"
            + (f"  skipped {content['skipped']}" if content["skipped"] else ""),
            flush=True,
        )

    def accuracies(self, elapsed_s: float, step: int, accuracies: dict[str, Accuracy]) -> None:
        """A table of skills."""
        right = sum(accuracy.right for accuracy in accuracies.values())
        spans = sum(accuracy.spans for accuracy in accuracies.values())
        self.write(
            "accuracy",
            elapsed_s=round(elapsed_s, 1),
            step=step,
            skills={skill: [a.right, a.spans] for skill, a in accuracies.items()},
        )
        print(f"held out, after {elapsed_s:.0f} s and {step} steps: {100 * right / spans:.1f} %")
        print(table(accuracies), flush=True)


def read_log(file: Path) -> dict[str, list[Record]]:
    """Records by kind. Raises FileNotFoundError, or ValueError if nothing was logged."""
    records: dict[str, list[Record]] = {"steps": [], "accuracy": []}
    for line in file.read_text("utf-8").splitlines():
        record = json.loads(line)
        records.setdefault(record["kind"], []).append(record)
    if not records["steps"]:
        raise ValueError(f"{file} has no record of a step yet")
    return records
