"""What an evaluation gives: one record for each task, and what they sum up to."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from glimt.evaluation.asking import Asked
from glimt.evaluation.formats import is_in_format
from glimt.evaluation.metrics import score
from glimt.evaluation.questions import text_of, thinks
from glimt.evaluation.replies import Json, Reply
from glimt.evaluation.statistics import wilson
from glimt.evaluation.tasks import Task, media_files
from glimt.evaluation.wishes import EvalWishes


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One task with its answer."""

    id: str
    skill: str
    metric: str
    question: str
    expected: Any
    media: list[str]
    thinking: bool
    answer: str
    reasoning: str
    calls: list[Json]
    score: float
    is_right: bool
    in_format: bool | None  # None = no form was asked for
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    error: str | None
    error_message: str


class Share(msgspec.Struct, frozen=True):
    """So many of n, with a 95 % interval."""

    num: int
    n: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, num: int, n: int) -> "Share":
        """With Wilson's interval; n = 0 gives the share 0 in [0, 1]."""
        return cls(num, n, num / n if n else 0.0, *wilson(num, n))


class SkillResult(msgspec.Struct, frozen=True):
    """How one skill went, or all of them together."""

    skill: str
    accuracy: Share
    mean_score: float
    num_failed: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """All records in numbers. `seconds` is the wall time of all of them."""

    skills: list[SkillResult]
    overall: SkillResult
    in_format: Share
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    tokens_per_s: float  # completion tokens of the whole run
    failures: dict[str, int]  # requests by class of error
    finish_reasons: dict[str, int]


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One model's part."""

    model: str
    facts: Json
    is_complete: bool  # False: interrupted; the records are those answered until then
    summary: Summary
    records: list[Record]


def side_of(model: str, tasks: Sequence[Task], asked: Asked, wishes: EvalWishes) -> Side:
    """Score what was answered."""
    records = [
        record_of(task, asked.replies[index], wishes)
        for index, task in enumerate(tasks)
        if index in asked.replies
    ]
    return Side(
        model=model,
        facts=asked.facts,
        is_complete=asked.is_complete,
        summary=summary_of(records, asked.seconds),
        records=records,
    )


def record_of(task: Task, reply: Reply, wishes: EvalWishes) -> Record:
    """One task's answer, scored."""
    thinking = thinks(task, wishes)
    value, is_right = score(task, reply, thinking=thinking, iou=wishes.iou)
    return Record(
        id=task.id,
        skill=task.skill,
        metric=task.metric,
        question=text_of(task),
        expected=task.answer,
        media=[name for _, name in media_files(task)],
        thinking=thinking,
        answer=reply.text,
        reasoning=reply.reasoning,
        calls=[{"name": call.name, "arguments": call.arguments} for call in reply.calls],
        score=value,
        is_right=is_right,
        in_format=is_in_format(task, reply, thinking=thinking),
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        seconds=reply.seconds,
        error=reply.error,
        error_message=reply.error_message,
    )


def summary_of(records: Sequence[Record], seconds: float) -> Summary:
    """Everything but the records; skills in the order of their first task."""
    skills = dict.fromkeys(record.skill for record in records)
    formed = [record.in_format for record in records if record.in_format is not None]
    completion_tokens = sum(record.completion_tokens for record in records)
    return Summary(
        skills=[
            skill_result(skill, [record for record in records if record.skill == skill])
            for skill in skills
        ],
        overall=skill_result("overall", records),
        in_format=Share.of(sum(formed), len(formed)),
        prompt_tokens=sum(record.prompt_tokens for record in records),
        completion_tokens=completion_tokens,
        seconds=seconds,
        tokens_per_s=completion_tokens / seconds if seconds > 0 else 0.0,
        failures=_counts(records, lambda record: record.error),
        finish_reasons=_counts(records, lambda record: record.finish_reason or None),
    )


def skill_result(skill: str, records: Sequence[Record]) -> SkillResult:
    """How these records went."""
    return SkillResult(
        skill=skill,
        accuracy=Share.of(sum(record.is_right for record in records), len(records)),
        mean_score=sum(record.score for record in records) / max(1, len(records)),
        num_failed=sum(record.error is not None for record in records),
    )


def _counts(records: Sequence[Record], key: Callable[[Record], str | None]) -> dict[str, int]:
    counts = Counter(name for record in records if (name := key(record)) is not None)
    return dict(counts.most_common())
