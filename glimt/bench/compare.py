"""`glimt bench compare`: two saved results, side by side, with intervals where they can be had.

Either side is an event log (`--raw`) or a result (`--save-detailed`), of one run or of repeats. If
both have the same number of repeats, these are paired; if both are single runs of the same
requests, the requests are.
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from glimt.bench.events import EventLog, RequestEvent, RunEnd, RunStart, read_log
from glimt.bench.figures.pairs import PairedChange, paired_changes
from glimt.bench.figures.question import Question
from glimt.bench.figures.scalars import Difference, differences
from glimt.bench.figures.summary import Summary, summarise
from glimt.bench.options import DataOptions, LoadOptions, SamplingOptions
from glimt.bench.report.comparison import comparison_page, comparison_tables
from glimt.bench.report.html import report, write_text
from glimt.bench.report.series import text_table, varied_by
from glimt.errors import BadSettings

Say = Callable[[str], None]


class Comparison(NamedTuple):
    """What changed in all, request by request, what there is to doubt, and the runs themselves."""

    changes: dict[str, Difference]
    pairs: list[PairedChange]
    doubts: list[str]
    sides: tuple[list[Summary], list[Summary]]


# The options that say what is asked of a server, and when.
_ASKED = [
    field.name
    for options in (LoadOptions, DataOptions, SamplingOptions)
    for field in dataclasses.fields(options)
    if field.name not in ("repeats", "workers", "seed", "dataset_path")
]
_ARRAYS = ("start_times", "ttfts", "itls", "input_lens", "output_lens", "errors")


def compare_files(
    before: str, after: str, question: Question, html: str | None, say: Say, tell: Say
) -> None:
    """Set two files side by side; `html` is a page to write. Raises BadSettings."""
    page = compare_runs(load(Path(before)), load(Path(after)), question, tell)
    if html is not None:
        write_text(Path(html), report("Comparison", f"{before} and {after}", "", [page]))
        say(f"wrote {html}")


def compare_runs(
    before: Sequence[EventLog], after: Sequence[EventLog], question: Question, tell: Say
) -> dict[str, Any]:
    """Set runs side by side: tables to `tell`; gives the page for a report."""
    comparison = compare(before, after, question)
    for table in comparison_tables(*comparison[:3]):
        tell(text_table(table) + "\n")
    return comparison_page(*comparison)


def load(path: Path) -> list[EventLog]:
    """Runs of an event log, or of a result with details. Raises BadSettings."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadSettings(f"{path} cannot be read: {error.strerror}") from None
    if content.startswith(b'{"event":"start"'):
        return read_log(path)
    return [_log_of(result, path) for result in _results(content, path)]


def compare(
    before: Sequence[EventLog], after: Sequence[EventLog], question: Question
) -> Comparison:
    """What changed, in all and request by request, and whether either client was too busy.

    Raises BadSettings if a side has runs of several loads.
    """
    for side, logs in (("before", before), ("after", after)):
        if (varied := varied_by(logs)) is not None:
            raise BadSettings(
                f"the runs {side} are a sweep: they differ in their {varied}; compare one load"
            )
    ours = [summarise(log, question) for log in before]
    theirs = [summarise(log, question) for log in after]
    is_paired = len(ours) == len(theirs)
    pairs = []
    if len(before) == len(after) == 1 and _same_requests(before[0], after[0]):
        pairs = paired_changes(before[0].requests, after[0].requests)
    doubts = [*_doubts("before", ours), *_doubts("after", theirs)]
    if unlike := _unlike(before[0], after[0]):
        doubts.insert(0, f"NOT ALIKE: {'; '.join(unlike)}")
    changes = differences(ours, theirs, is_paired=is_paired)
    return Comparison(changes, pairs, doubts, (ours, theirs))


def _doubts(side: str, runs: Sequence[Summary]) -> list[str]:
    """Why a side is not to be trusted, in the words of its first run of which that is so."""
    doubtful = [run.client.doubts for run in runs if not run.client.is_trusted]
    if not doubtful:
        return []
    count = f" in {len(doubtful)} of {len(runs)} runs" if len(runs) > 1 else ""
    return [f"NOT TRUSTWORTHY {side}{count}: {', '.join(doubtful[0])}"]


def _results(content: bytes, path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file: one, or one a line (--append-result)."""
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    try:
        return [decode(content)]
    except msgspec.DecodeError:
        pass
    try:
        return [decode(line) for line in content.splitlines() if line.strip()]
    except msgspec.DecodeError as error:
        raise BadSettings(f"{path} is neither an event log nor a result: {error}") from None


def _same_requests(before: EventLog, after: EventLog) -> bool:
    """By the digest of the prompts; without one (other clients) by the lengths of the prompts."""
    digests = [log.start.provenance.get("workload") for log in (before, after)]
    if None in digests:
        lengths = [[event.prompt_tokens for event in log.requests] for log in (before, after)]
        return lengths[0] == lengths[1]
    return digests[0] == digests[1]


def _unlike(before: EventLog, after: EventLog) -> list[str]:
    """In what the two sides were asked different things, so that figures may differ by it."""
    first, second = before.start, after.start
    found = [] if _same_requests(before, after) else ["the prompts differ"]
    if first.settings and second.settings:
        pairs = {name: (first.settings.get(name), second.settings.get(name)) for name in _ASKED}
    else:  # a result of another client
        pairs = {
            "request_rate": (first.request_rate, second.request_rate),
            "max_concurrency": (first.max_concurrency, second.max_concurrency),
        }
    for name, values in pairs.items():
        if values[0] != values[1]:
            one, other = ("none given" if value is None else value for value in values)
            found.append(f"--{name.replace('_', '-')}: {one} and {other}")
    return found


def _log_of(result: dict[str, Any], path: Path) -> EventLog:
    """A log with what the arrays of a detailed result tell: vLLM's client writes them too."""
    if any(name not in result for name in (*_ARRAYS, "duration")):
        raise BadSettings(
            f"{path} holds no requests: save it with --save-detailed, or the log with --raw"
        )
    columns = zip(*(result[name] for name in _ARRAYS), strict=True)
    first = min(result["start_times"], default=0.0)
    rate = result.get("request_rate", "inf")
    own = result.get("glimt") or {}
    return EventLog(
        start=RunStart(
            date=str(result.get("date", "")),
            backend=str(result.get("backend", "")),
            model=str(result.get("model_id", "")),
            request_rate=None if rate == "inf" else float(rate),
            max_concurrency=result.get("max_concurrency"),
            settings=own.get("settings") or {},
            provenance=own.get("provenance") or {},
        ),
        requests=[_request(index, first, *column) for index, column in enumerate(columns)],
        end=RunEnd(end_ns=round(float(result["duration"]) * 1e9)),
        told_doubts=(own.get("client") or {}).get("doubts") or [],
    )


def _request(
    index: int,
    first: float,
    start: float,
    ttft: float,
    itls: list[float],
    num_in: int,
    num_out: int,
    error: str,
) -> RequestEvent:
    start_ns = round((start - first) * 1e9)
    is_good = ttft > 0 and num_out > 0
    at_ns = [start_ns + round(passed * 1e9) for passed in accumulate([ttft, *itls])]
    chunk_ns = at_ns if is_good else []
    return RequestEvent(
        index=index,
        intended_ns=start_ns,
        fired_ns=start_ns,
        admitted_ns=start_ns,
        start_ns=start_ns,
        end_ns=chunk_ns[-1] if chunk_ns else start_ns,
        status=200 if is_good else None,
        failure=None if is_good else "broken",
        error=error,
        finish_reason="length" if is_good else None,
        chunk_ns=chunk_ns,
        chunk_kinds="c" * len(chunk_ns),
        chunk_chars=[1] * len(chunk_ns),
        prompt_tokens=num_in,
        completion_tokens=num_out,
        asked_tokens=num_out,
    )
