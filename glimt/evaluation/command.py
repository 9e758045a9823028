"""`glimt eval`, from the arguments to the files that it leaves."""

import asyncio
import os
import platform
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from glimt import __version__
from glimt.builtin.heldout import heldout_file
from glimt.errors import BadSettings, StartupError
from glimt.evaluation.asking import Asked, Asking, ask_all
from glimt.evaluation.comparison import Comparison, Results, compare
from glimt.evaluation.divergence import (
    Divergence,
    NotComparable,
    Place,
    divergence_of,
    shared_places,
)
from glimt.evaluation.questions import question_of
from glimt.evaluation.remote import RemoteModel
from glimt.evaluation.replies import Respondent, Script
from glimt.evaluation.report import render_report
from glimt.evaluation.results import Side, side_of
from glimt.evaluation.subjects import Subject, subjects_of
from glimt.evaluation.tables import comparison_table, summary_table
from glimt.evaluation.tasks import Task, TaskFile, read_tasks, select
from glimt.evaluation.wishes import BUILTIN, EvalWishes
from glimt.hub import locate

RESULTS, REPORT = "results.json", "report.html"
_TOP_LOGPROBS = 20  # the most that OpenAI's API gives
_EXIT_OK, _EXIT_FAILED, _EXIT_INTERRUPTED = 0, 1, 130
_FULL = "all logits of both models, led through A's answers token by token"
_LISTED = (
    f"the {_TOP_LOGPROBS} likeliest tokens that each API lists, up to the first place at which the "
    "answers differ: KL is a lower bound"
)
_INTERRUPTED = "interrupted before the end"

Say = Callable[[str], None]


@dataclass(frozen=True)
class LocalParts:
    """What is only there where models are loaded in this process, for it imports torch.

    `open` is `glimt.evaluation.local.LocalModel` (model, arguments of LLM, questions at once),
    `compare_logits` that of `glimt.evaluation.teacher`.
    """

    open: Callable[[str, Mapping[str, Any], int], Respondent]
    compare_logits: Callable[[Subject, Subject, Iterator[Script], int], list[list[Place]]]


@dataclass(frozen=True)
class _Work:
    wishes: EvalWishes
    subjects: list[Subject]
    file: TaskFile
    tasks: list[Task]
    folder: Path
    local: LocalParts | None


def needs_local(model: str | None, wishes: EvalWishes) -> bool:
    """Whether a model has to be loaded here. Raises BadSettings."""
    return any(subject.is_local for subject in subjects_of(model, wishes))


def evaluate(
    model: str | None, wishes: EvalWishes, local: LocalParts | None, say: Say, tell: Say
) -> int:
    """Do it; the exit status. `say` gets progress, `tell` the tables.

    `local` may be None where `needs_local` is false. Raises StartupError for what is refused.
    """
    before = signal.signal(signal.SIGTERM, _as_ctrl_c)
    try:
        return _evaluate(model, wishes, local, say, tell)
    finally:
        signal.signal(signal.SIGTERM, before)


def _as_ctrl_c(signum: int, frame: FrameType | None) -> None:
    """Schedulers of jobs send SIGTERM: what was answered until then is kept."""
    signal.raise_signal(signal.SIGINT)


def _evaluate(
    model: str | None, wishes: EvalWishes, local: LocalParts | None, say: Say, tell: Say
) -> int:
    subjects = subjects_of(model, wishes)
    file = read_tasks(heldout_file() if wishes.tasks == BUILTIN else Path(wishes.tasks))
    tasks = select(file.tasks, wishes.skills, wishes.limit)
    work = _Work(wishes, subjects, file, tasks, _output_folder(wishes), local)
    _check_others(work)
    everything: list[Asked] = []
    sides: list[Side] = []
    for subject in subjects:
        say(f"glimt eval: {len(tasks)} tasks of {file.name} for {subject.label}")
        asked = _ask(work, subject)
        if not asked.replies and not asked.is_complete and not sides:
            say(f"{asked.gone or 'stopped'} before the first answer; nothing was written")
            return _EXIT_INTERRUPTED if asked.gone is None else _EXIT_FAILED
        everything.append(asked)
        sides.append(side_of(_label(subject, asked), tasks, asked, wishes))
        _write_results(work, sides, None)  # kept, should the next model fail to load
        tell(f"{sides[-1].model}\n{summary_table(sides[-1])}\n")
        if not asked.is_complete:
            break
    comparison = None
    if len(sides) == 2:
        comparison = _compare(work, everything, sides, say)
        tell(comparison_table(comparison, [side.model for side in sides]))
    results = _write_results(work, sides, comparison)
    _write(work.folder / REPORT, render_report(results, tasks, file.files).encode())
    say(f"written: {work.folder / RESULTS}, {work.folder / REPORT}")
    was_interrupted = comparison is not None and comparison.divergence_note == _INTERRUPTED
    gone = everything[-1].gone
    if was_interrupted or not everything[-1].is_complete:
        say(f"{gone or 'stopped'} after {len(sides[-1].records)} of {len(tasks)} tasks")
        return _EXIT_INTERRUPTED if gone is None else _EXIT_FAILED
    is_useless = all(record.error is not None for side in sides for record in side.records)
    return _EXIT_FAILED if is_useless else _EXIT_OK


def _check_others(work: _Work) -> None:
    """Refuse what could not be asked before the first model is, not an hour later."""
    for subject in work.subjects[1:]:
        if subject.is_local:
            locate(subject.model or "")
        else:
            asyncio.run(_check_answers(_respondent(work, subject)))


async def _check_answers(respondent: Respondent) -> None:
    try:
        await respondent.start()
    finally:
        await respondent.close()


def _label(subject: Subject, asked: Asked) -> str:
    """What tables call it: of a server the model that answered, and where."""
    if subject.base_url is None:
        return subject.label
    return f"{asked.facts.get('model', subject.model)} at {subject.base_url}"


def _output_folder(wishes: EvalWishes) -> Path:
    folder = Path(wishes.output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadSettings(f"--output {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise BadSettings(f"--output {folder} cannot be written")
    return folder


def _ask(work: _Work, subject: Subject) -> Asked:
    is_pair = len(work.subjects) == 2
    by_logits = all(each.is_local for each in work.subjects)
    top_logprobs = _TOP_LOGPROBS if is_pair and not by_logits else None
    asking = Asking(work.tasks, work.file.files, work.wishes, top_logprobs)
    return ask_all(asking, _respondent(work, subject))


def _respondent(work: _Work, subject: Subject) -> Respondent:
    if subject.base_url is not None:
        return RemoteModel(subject.base_url, subject.model, work.wishes.api_key)
    if subject.model is None or work.local is None:
        raise RuntimeError("a model that is not there cannot be loaded")
    return work.local.open(subject.model, subject.settings, work.wishes.concurrency)


# ------------------------------------------------------------------------------------ comparing


def _compare(work: _Work, asked: Sequence[Asked], sides: Sequence[Side], say: Say) -> Comparison:
    divergence, note = _divergence(work, asked, say)
    return compare(sides[0], sides[1], divergence=divergence, divergence_note=note)


def _divergence(work: _Work, asked: Sequence[Asked], say: Say) -> tuple[Divergence | None, str]:
    """The figures, and how they were measured or why not: accuracy is kept in any case."""
    a, b = asked
    if work.local is None or not all(subject.is_local for subject in work.subjects):
        pairs = [(a.replies[index], b.replies[index]) for index in a.replies if index in b.replies]
        shared = [list(shared_places(one, other)) for one, other in pairs]
        divergence = divergence_of(shared, "listed logprobs")
        return divergence, _LISTED if divergence else "the servers gave no log-probabilities"
    if not b.is_complete:
        return None, _INTERRUPTED
    say("comparing logits")
    answered = [index for index in a.replies if a.replies[index].token_ids]
    try:
        places = work.local.compare_logits(
            work.subjects[0], work.subjects[1], _scripts(work, a, answered), len(answered)
        )
    except (NotComparable, StartupError) as error:
        return None, str(error)
    except KeyboardInterrupt:
        return None, _INTERRUPTED
    return divergence_of(places, "logits"), _FULL


def _scripts(work: _Work, asked: Asked, answered: Sequence[int]) -> Iterator[Script]:
    for index in sorted(answered):
        question = question_of(work.tasks[index], work.file.files, work.wishes)
        yield Script(question, asked.replies[index].token_ids)


# -------------------------------------------------------------------------------------- results


def _write_results(work: _Work, sides: Sequence[Side], comparison: Comparison | None) -> Results:
    settings = asdict(work.wishes)
    settings["api_key"] = "(hidden)" if work.wishes.api_key else None
    file = work.file
    results = Results(
        tasks_file={"name": file.name, "sha256": file.sha256, "num_tasks": len(file.tasks)},
        settings=settings,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"glimt": __version__, "python": platform.python_version()},
        sides=list(sides),
        comparison=comparison,
    )
    content = msgspec.json.format(msgspec.json.encode(results), indent=1)
    _write(work.folder / RESULTS, content + b"\n")
    return results


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StartupError(f"{path}: {error.strerror}") from None
