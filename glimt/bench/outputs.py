"""Everything that is written of the runs of one command."""

import dataclasses
import re
import shlex
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from glimt.bench import compare, settings
from glimt.bench.events import EventLog, write_log
from glimt.bench.figures.question import Question
from glimt.bench.figures.scalars import intervals
from glimt.bench.figures.summary import Summary, summarise
from glimt.bench.options import Options, OutputOptions
from glimt.bench.report.exports import markdown, write_csv
from glimt.bench.report.html import report, write_text
from glimt.bench.report.page import run_page
from glimt.bench.report.result import result, write_results
from glimt.bench.report.series import (
    repeats_page,
    repeats_table,
    sweep_page,
    sweep_table,
    text_table,
    verdicts,
)
from glimt.bench.report.table import Wording, table
from glimt.log import escaped

_PAGES_IN_FULL = 4  # with more runs, each is drawn in less detail: a report is below a megabyte
_MAX_NOTE_CHARS = 1000

Say = Callable[[str], None]
Data = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, evaluated."""

    log: EventLog
    summary: Summary


def evaluate(logs: Sequence[EventLog], question: Question) -> list[Run]:
    """Summaries of logs."""
    return [Run(log, summarise(log, question)) for log in logs]


def compared_with(options: Options) -> list[EventLog]:
    """The runs of --compare BEFORE, to be read before anything is done. Raises BadSettings."""
    files = options.output.compare or []
    return compare.load(Path(files[0])) if files else []


def wording(options: Options) -> Wording:
    """What the table shows. Raises BadSettings."""
    return Wording(
        metrics=settings.metrics(options.figures.percentile_metrics),
        objectives=settings.question(options).objectives,
        vllm_compat=options.figures.vllm_compat,
        has_text_row=options.figures.input_tokens == "both",
    )


def show(options: Options, run: Run, say: Say, tell: Say) -> None:
    """The table of one run to `tell`; errors and notes to `say`."""
    tell(table(run.log.start, run.summary, wording(options)))
    for text in (*run.summary.errors, *run.summary.notes, *run.log.end.notes):
        say(f"note: {escaped(text, _MAX_NOTE_CHARS)}")  # a server's words do not steer the terminal


def write(
    options: Options,
    runs: Sequence[Run],
    say: Say,
    tell: Say,
    *,
    varied: str | None = None,
    before: Sequence[EventLog] = (),
) -> None:
    """What several runs give together, and all files that are wanted. Raises BadSettings.

    `varied` is rate or concurrency if the runs are those of a sweep; `before` is what they are to
    be compared with. A run that was interrupted is in none of the tables, if there are others.
    """
    whole = [run for run in runs if not run.log.end.is_interrupted]
    pairs = [(run.log, run.summary) for run in whole]
    pages: list[Data] = []
    if varied is not None and pairs:
        tell(text_table(sweep_table(pairs, varied)) + "\n")
        objectives = settings.question(options).objectives
        is_search = bool(runs[0].log.start.settings.get("find_max_rate"))
        said = verdicts(pairs, varied, objectives, is_search=is_search)
        if not is_search:  # which ends with a sentence of its own
            for _, text in said:
                tell(f"{text[:1].upper()}{text[1:]}.")
        pages.append(sweep_page(pairs, varied, said))
    elif len(whole) > 1:
        num_doubtful = sum(not run.summary.client.is_trusted for run in whole)
        repeats = repeats_table(intervals([run.summary for run in whole]), num_doubtful)
        tell(text_table(repeats) + "\n")
        pages.append(repeats_page(repeats))
    if before:
        logs = [run.log for run in whole or runs]
        pages.append(compare.compare_runs(before, logs, settings.question(options), tell))
    _write_files(options, runs, pages, say)


def _write_files(options: Options, runs: Sequence[Run], pages: list[Data], say: Say) -> None:
    output, logs = options.output, [run.log for run in runs]
    if output.raw is not None:
        write_log(Path(output.raw), logs)
        say(f"wrote {output.raw}")
    if output.csv is not None:
        write_csv(Path(output.csv), logs)
        say(f"wrote {output.csv}")
    if output.markdown is not None:
        pairs = [(run.log, run.summary) for run in runs]
        write_text(Path(output.markdown), markdown(pairs, pages))
        say(f"wrote {output.markdown}")
    if (page := _page_path(options, logs[0])) is not None:
        write_text(page, _report(options, runs, pages))
        say(f"wrote {page}")
    if output.save_result or output.append_result:
        path = result_path(options, logs[0])
        results = [_result(run, wording(options), output) for run in runs]
        write_results(path, results, append=output.append_result)
        say(f"wrote {path}")


def _page_path(options: Options, log: EventLog) -> Path | None:
    output = options.output
    if output.html is not None:
        return Path(output.html)
    if output.plot_timeline or output.plot_dataset_stats:
        return result_path(options, log).with_suffix(".html")
    return None


def _report(options: Options, runs: Sequence[Run], pages: list[Data]) -> str:
    objectives = settings.question(options).objectives
    names = [_name(run.log, place, len(runs)) for place, run in enumerate(runs)]
    detail = min(1.0, _PAGES_IN_FULL / len(runs))
    limits = settings.gap_limits(options.output.timeline_itl_thresholds)
    shown = [
        run_page(run.log, run.summary, objectives, name, detail, limits)
        for run, name in zip(runs, names, strict=True)
    ]
    start = runs[0].log.start
    server = start.provenance.get("server") or {}
    version = f", server version {server['version']}" if server.get("version") else ""
    load = _load_text(runs[0].log) if len(runs) == 1 else f"{len(runs)} runs"
    subtitle = f"{load}, {start.backend}{version}, {_day_and_time(start.date)}"
    argv = start.provenance.get("argv") or []
    command = f"glimt {shlex.join(argv)}" if argv else ""
    return report(start.model, subtitle, command, [*pages, *shown])


def _day_and_time(date: str) -> str:
    """From 20261127-184539 (vLLM's form): 2026-11-27 18:45."""
    try:
        return f"{datetime.strptime(date, '%Y%m%d-%H%M%S'):%Y-%m-%d %H:%M}"
    except ValueError:
        return date


def _load_text(log: EventLog) -> str:
    start = log.start
    if start.ramp_up is not None:
        _, first, last = start.ramp_up
        return f"{first} to {last} requests per second"
    if start.request_rate is not None:
        rate = start.request_rate
        return f"{rate:g} request{'' if rate == 1 else 's'} per second"
    if start.max_concurrency is not None:
        count = start.max_concurrency
        return f"{count} request{'s' if count > 1 else ''} at a time"
    return "all requests at once"


def _name(log: EventLog, place: int, count: int) -> str:
    return _load_text(log) if count == 1 else f"{place + 1}: {_load_text(log)}"


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


def _result(run: Run, wording: Wording, output: OutputOptions) -> Data:
    texts = (text.partition("=") for text in output.metadata or ())
    return result(
        run.log,
        run.summary,
        wording,
        {key.strip(): value.strip() for key, _, value in texts},
        label=output.label,
        is_detailed=output.save_detailed,
    )
