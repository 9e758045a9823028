"""`glimt eval`, from the arguments to the files that it leaves."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from glimt import __version__
from glimt.errors import BadSettings, StartupError
from glimt.evaluation.asking import Asking, ask_all
from glimt.evaluation.remote import RemoteModel
from glimt.evaluation.replies import Respondent
from glimt.evaluation.report import render_report
from glimt.evaluation.results import Results, Side, side_of
from glimt.evaluation.tables import summary_table
from glimt.evaluation.tasks import TaskFile, read_tasks, select
from glimt.evaluation.wishes import EvalWishes

RESULTS, REPORT = "results.json", "report.html"
_EXIT_OK, _EXIT_ALL_FAILED, _EXIT_INTERRUPTED = 0, 1, 130

Say = Callable[[str], None]
# `glimt.evaluation.local.LocalModel`: model, arguments of LLM, how many questions at once.
OpenLocal = Callable[[str, Mapping[str, Any], int], Respondent]


def evaluate(
    model: str | None, wishes: EvalWishes, open_local: OpenLocal | None, say: Say, tell: Say
) -> int:
    """Do it; the exit status. `say` gets progress, `tell` the tables.

    `open_local` is None where no local model is needed. Raises StartupError for what is refused.
    """
    model = _check(model, wishes)
    file = read_tasks(Path(wishes.tasks))
    tasks = select(file.tasks, wishes.skills, wishes.limit)
    folder = _output_folder(wishes)
    respondent = _respondent(model, wishes, open_local)
    say(f"glimt eval: {len(tasks)} tasks of {file.name} for {respondent.name}")
    asked = ask_all(Asking(tasks, file.files, wishes), respondent)
    side = side_of(respondent.name, tasks, asked, wishes)
    results = _results(model, wishes, file, [side])
    tell(summary_table(side))
    content = msgspec.json.format(msgspec.json.encode(results), indent=1)
    _write(folder / RESULTS, content + b"\n")
    _write(folder / REPORT, render_report(results, tasks, file.files).encode())
    say(f"written: {folder / RESULTS}, {folder / REPORT}")
    if not asked.is_complete:
        say(f"stopped after {len(side.records)} of {len(tasks)} tasks")
        return _EXIT_INTERRUPTED
    is_useless = all(record.error is not None for record in side.records)
    return _EXIT_ALL_FAILED if is_useless else _EXIT_OK


def needs_local(wishes: EvalWishes) -> bool:
    """Whether a model has to be loaded here."""
    return wishes.base_url is None


def _check(model: str | None, wishes: EvalWishes) -> str | None:
    """The model's name, None = the server's first. Raises BadSettings."""
    problems = []
    if model is not None and wishes.model_name not in (None, model):
        problems.append(f"MODEL is {model} and --model is {wishes.model_name}: name one")
    model = model or wishes.model_name
    if model is None and wishes.base_url is None:
        problems.append("name a checkpoint, or a server with --base-url")
    if wishes.base_url is not None:
        problems += [
            f"{flag} is for local models; the server was started with its own"
            for flag, is_given in (
                ("--quantization", wishes.quantization is not None),
                ("--kv-cache-dtype", wishes.kv_cache_dtype != "auto"),
                ("--dtype", wishes.dtype != "auto"),
                ("--device", wishes.device != "auto"),
            )
            if is_given
        ]
    problems += _ranges(wishes)
    if problems:
        raise BadSettings("nothing was asked:", problems)
    return model


def _ranges(wishes: EvalWishes) -> list[str]:
    problems = [
        f"{flag} {value}: must be at least 1"
        for flag, value in (
            ("--limit", wishes.limit),
            ("--concurrency", wishes.concurrency),
            ("--max-tokens", wishes.max_tokens),
        )
        if value is not None and value < 1
    ]
    if not 0 < wishes.iou <= 1:
        problems.append(f"--iou {wishes.iou}: must be above 0, at most 1")
    if not 0 <= wishes.temperature <= 100:
        problems.append(f"--temperature {wishes.temperature}: must be 0 to 100")
    if not 0 <= wishes.seed < 2**63:
        problems.append(f"--seed {wishes.seed}: must be 0 to 2^63 - 1")
    return problems


def _output_folder(wishes: EvalWishes) -> Path:
    folder = Path(wishes.output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadSettings(f"--output {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise BadSettings(f"--output {folder} cannot be written")
    return folder


def _respondent(model: str | None, wishes: EvalWishes, open_local: OpenLocal | None) -> Respondent:
    if wishes.base_url is not None:
        return RemoteModel(wishes.base_url, model, wishes.api_key)
    if model is None or open_local is None:
        raise RuntimeError("a local model is needed")
    settings = {
        "quantization": wishes.quantization,
        "kv_cache_dtype": wishes.kv_cache_dtype,
        "dtype": wishes.dtype,
        "device": wishes.device,
        "seed": wishes.seed,
    }
    return open_local(model, settings, wishes.concurrency)


def _results(
    model: str | None, wishes: EvalWishes, file: TaskFile, sides: Sequence[Side]
) -> Results:
    settings = asdict(wishes)
    settings["api_key"] = "(hidden)" if wishes.api_key else None
    return Results(
        tasks_file={"name": file.name, "sha256": file.sha256, "num_tasks": len(file.tasks)},
        settings={"model": model, **settings},
        versions={"glimt": __version__, "python": platform.python_version()},
        sides=list(sides),
    )


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StartupError(f"{path}: {error.strerror}") from None
