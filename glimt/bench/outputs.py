"""Everything that is written of the runs of one command."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from glimt.bench import settings
from glimt.bench.events import EventLog, write_log
from glimt.bench.figures.summary import Question, Summary, summarise
from glimt.bench.options import Options, OutputOptions
from glimt.bench.report.result import result, write_results
from glimt.bench.report.table import Wording, table

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, evaluated."""

    log: EventLog
    summary: Summary


def evaluate(logs: Sequence[EventLog], question: Question) -> list[Run]:
    """Summaries of logs."""
    return [Run(log, summarise(log, question)) for log in logs]


def write(options: Options, runs: Sequence[Run], say: Say, tell: Say) -> None:
    """Tables to `tell`; files as the options want them, each named by `say`. Raises BadSettings."""
    wording, output = settings.wording(options), options.output
    for run in runs:
        tell(table(run.log.start, run.summary, wording))
        for text in (*run.summary.errors, *run.log.end.notes):
            say(f"note: {text}")
    if output.raw is not None:
        path = Path(output.raw)
        write_log(path, [run.log for run in runs])
        say(f"wrote {path}")
    if output.save_result or output.append_result:
        path = result_path(options, runs[0].log)
        results = [_result(run, wording, output) for run in runs]
        write_results(path, results, append=output.append_result)
        say(f"wrote {path}")


def result_path(options: Options, log: EventLog) -> Path:
    """The file of the result: as named, or {label}-{rate}qps[-concurrencyN]-{model}-{date}.json."""
    output, start = options.output, log.start
    folder = Path(output.result_dir or ".")
    if output.result_filename:
        return folder / output.result_filename
    rate = "inf" if start.request_rate is None else f"{start.request_rate:g}"
    limit = f"-concurrency{start.max_concurrency}" if start.max_concurrency else ""
    model = re.sub(r"[^\w.-]", "_", start.model.rstrip("/").rsplit("/", 1)[-1])
    label = output.label or start.backend
    return folder / f"{label}-{rate}qps{limit}-{model}-{start.date}.json"


def _result(run: Run, wording: Wording, output: OutputOptions) -> dict[str, Any]:
    pairs = (text.partition("=") for text in output.metadata or ())
    return result(
        run.log,
        run.summary,
        wording,
        {key.strip(): value.strip() for key, _, value in pairs},
        label=output.label,
        is_detailed=output.save_detailed,
    )
