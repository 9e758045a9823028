"""Two models on the same tasks: what of their difference is more than chance."""

from collections.abc import Sequence

import msgspec

from glimt.evaluation.divergence import Divergence
from glimt.evaluation.replies import Json
from glimt.evaluation.results import Record, Share, Side
from glimt.evaluation.statistics import Interval, mcnemar, paired_difference


class PairedResult(msgspec.Struct, frozen=True, kw_only=True):
    """One skill, or all together, over the tasks that both models were asked.

    `difference` is accuracy of B less accuracy of A, with a paired 95 % interval.
    """

    skill: str
    n: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    interval: Interval
    only_a: int  # tasks that only A got right
    only_b: int
    p_value: float  # McNemar's exact test


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A against B."""

    skills: list[PairedResult]
    overall: PairedResult
    same_answer: Share  # tasks with the same answer, thoughts and calls, to the letter
    divergence: Divergence | None
    divergence_note: str  # how it was measured, or why it was not


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The content of results.json. `format` grows when fields change their meaning."""

    format: int = 1
    created: str  # ISO 8601, UTC
    tasks_file: Json
    settings: Json
    versions: Json
    sides: list[Side]
    comparison: Comparison | None = None


def compare(a: Side, b: Side, *, divergence: Divergence | None, divergence_note: str) -> Comparison:
    """Pair the records by task."""
    by_id = {record.id: record for record in b.records}
    pairs = [(record, by_id[record.id]) for record in a.records if record.id in by_id]
    skills = dict.fromkeys(record.skill for record, _ in pairs)
    same = sum(said(one) == said(other) for one, other in pairs if one.error is None)
    return Comparison(
        skills=[
            _paired(skill, [pair for pair in pairs if pair[0].skill == skill]) for skill in skills
        ],
        overall=_paired("overall", pairs),
        same_answer=Share.of(same, len(pairs)),
        divergence=divergence,
        divergence_note=divergence_note,
    )


def _paired(skill: str, pairs: Sequence[tuple[Record, Record]]) -> PairedResult:
    right_a = [a.is_right for a, _ in pairs]
    right_b = [b.is_right for _, b in pairs]
    n = len(pairs)
    test = mcnemar(right_a, right_b)
    return PairedResult(
        skill=skill,
        n=n,
        accuracy_a=sum(right_a) / max(1, n),
        accuracy_b=sum(right_b) / max(1, n),
        difference=(test.c - test.b) / max(1, n),
        interval=paired_difference(test.b, test.c, n),
        only_a=test.b,
        only_b=test.c,
        p_value=test.p_value,
    )


def said(record: Record) -> tuple[str, str, str, str | None]:
    """Everything that came back, to be compared."""
    return record.answer, record.reasoning, repr(record.calls), record.error
