"""Asks a model all tasks, several at a time, with a progress bar; Ctrl-C keeps what is there."""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from zipfile import BadZipFile

import msgspec
from tqdm import tqdm

from glimt.evaluation.questions import question_of
from glimt.evaluation.replies import Json, ModelGone, Reply, Respondent
from glimt.evaluation.tasks import MediaFiles, Task
from glimt.evaluation.wishes import EvalWishes


@dataclass
class Asked:
    """What came back: replies by the place of their task in the list."""

    facts: Json = field(default_factory=dict)
    replies: dict[int, Reply] = field(default_factory=dict)
    seconds: float = 0.0  # from the first question to the last answer
    is_complete: bool = False
    gone: str | None = None  # why nothing more could be asked


@dataclass(frozen=True)
class Asking:
    """What is asked, and how."""

    tasks: Sequence[Task]
    files: MediaFiles
    wishes: EvalWishes
    top_logprobs: int | None = None


def ask_all(asking: Asking, respondent: Respondent) -> Asked:
    """Ask every task. Interrupted by Ctrl-C, or where the model is gone, it gives what was
    answered until then.

    Raises StartupError where the model cannot be asked at all.
    """
    asked = Asked()
    try:
        asyncio.run(_ask_all(asking, respondent, asked))
        asked.is_complete = asked.gone is None
    except KeyboardInterrupt:
        pass
    return asked


async def _ask_all(asking: Asking, respondent: Respondent, asked: Asked) -> None:
    waiting = iter(range(len(asking.tasks)))

    async def work() -> None:
        for index in waiting:
            asked.replies[index] = await _ask(asking, index, respondent)
            asked.seconds = time.monotonic() - began_s
            bar.update()

    try:
        await respondent.start()
        asked.facts = respondent.facts()
        began_s = time.monotonic()
        try:
            with tqdm(
                total=len(asking.tasks),
                desc=respondent.name,
                unit="task",
                mininterval=0.1 if sys.stderr.isatty() else 10.0,  # a log gets a line now and then
            ) as bar:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(len(asking.tasks), asking.wishes.concurrency)):
                        group.create_task(work())
        except* ModelGone as gone:
            asked.gone = str(gone.exceptions[0])
        finally:
            asked.facts = respondent.facts()  # what was learnt of it meanwhile
    finally:
        await respondent.close()


async def _ask(asking: Asking, index: int, respondent: Respondent) -> Reply:
    began_s = time.monotonic()
    try:
        question = question_of(
            asking.tasks[index], asking.files, asking.wishes, asking.top_logprobs
        )
    except (OSError, BadZipFile) as error:
        return Reply(error="unreadable_file", error_message=str(error))
    reply = await respondent.answer(question)
    return msgspec.structs.replace(reply, seconds=time.monotonic() - began_s)
