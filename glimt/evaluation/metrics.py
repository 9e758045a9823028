"""Scores of answers: exact match, ANLS, IoU, relaxed match, contains, tool calls.

Each is a number from 0 to 1, and a verdict right or wrong. docs/evaluation.md has the formulas in
words, and where they come from.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from glimt.evaluation.boxes import boxed, overlap, parse_box
from glimt.evaluation.formats import is_in_format
from glimt.evaluation.replies import Call, Reply
from glimt.evaluation.tasks import Task

ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05

_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)
_DIGITS = {word: str(value) for value, word in enumerate(_WORDS)}
# Whole words only: not the "one" of "twenty-one", not the "a" of "don't a-b".
_NUMBER_WORD = re.compile(rf"(?<![\w'-])(?:{'|'.join(_WORDS)})(?![\w'-])")
_ARTICLE = re.compile(r"(?<![\w'-])(?:a|an|the)(?![\w'-])")
_QUOTES = "\"'`“”‘’«»"
_BEFORE, _AFTER = f" ([{{*{_QUOTES}", f" .,;:!?)]}}*{_QUOTES}"
_AMOUNT = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?")


class Score(NamedTuple):
    """`value` 0 … 1 is what the metric is averaged from; `is_right` is what accuracy counts."""

    value: float
    is_right: bool


def score(task: Task, reply: Reply, *, thinking: bool, iou: float) -> Score:
    """The best over the task's answers; a failed request scores 0.

    `thinking`: whether it was asked for. `iou`: from which overlap on a box is right.
    """
    if reply.error is not None:
        return Score(0.0, False)
    if task.metric == "tool_call":
        return _yes_no(same_calls(task.answers, reply.calls))
    if task.metric == "format":
        return _yes_no(is_in_format(task, reply, thinking=thinking) is not False)
    if task.metric == "iou":
        value = max(box_overlap(reply.text, answer) for answer in task.answers)
        return Score(value, value >= iou)
    given = boxed(reply.text)
    if task.choices:
        given = chosen(given, task.choices)
    answers = [str(answer) for answer in task.answers]
    if task.choices:
        answers = [chosen(answer, task.choices) for answer in answers]
    if task.metric == "anls":
        value = max(anls(given, answer) for answer in answers)
        return Score(value, value > 0)
    return _yes_no(any(_PAIRED[task.metric](given, answer) for answer in answers))


def _yes_no(is_right: bool) -> Score:
    return Score(float(is_right), is_right)


def normalised(text: str) -> str:
    """Lower case, single spaces, no punctuation around, no articles, number words as digits.

    What would vanish whole (the letter "A") keeps its articles.
    """
    text = " ".join(text.casefold().split()).lstrip(_BEFORE).rstrip(_AFTER)
    text = _NUMBER_WORD.sub(lambda match: _DIGITS[match.group()], text)
    return " ".join(_ARTICLE.sub(" ", text).split()) or text


def exact(given: str, answer: str) -> bool:
    """Equal once normalised."""
    return normalised(given) == normalised(answer)


def contains(given: str, answer: str) -> bool:
    """The normalised answer stands in the normalised text as whole words."""
    wanted = re.escape(normalised(answer))
    return re.search(rf"(?<!\w){wanted}(?!\w)", normalised(given)) is not None


def relaxed(given: str, answer: str) -> bool:
    """Numbers within 5 % of the right one, everything else equal once normalised.

    Source: Masry et al., ChartQA (2022), after Methani et al., PlotQA (2020).
    """
    number, right = amount(given), amount(answer)
    if number is None or right is None:
        return exact(given, answer)
    return math.isclose(number, right, rel_tol=1e-12, abs_tol=RELAXED_TOLERANCE * abs(right))


def amount(text: str) -> float | None:
    """The number that a text is, apart from currency, percent sign and thousands separators."""
    text = normalised(text).strip("$€£¥% ")
    if not _AMOUNT.fullmatch(text):
        return None
    return float(text.replace(",", ""))


def anls(given: str, answer: str) -> float:
    """Normalised Levenshtein similarity, 0 from a distance of half the longer text on.

    s = 1 - d / max(|a|, |b|) where d / max(|a|, |b|) < 0.5, else 0; upper and lower case are one.
    Source: Biten et al., Scene Text Visual Question Answering (2019).
    """
    a, b = (" ".join(text.casefold().split()) for text in (given, answer))
    longest = max(len(a), len(b))
    if longest == 0:
        return 1.0
    distance = levenshtein(a, b) / longest
    return 1.0 - distance if distance < ANLS_THRESHOLD else 0.0


def levenshtein(a: str, b: str) -> int:
    """The least number of insertions, deletions and replacements that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def box_overlap(given: str, answer: Any) -> float:
    """Intersection over union of the text's box and the right one; 0 without a box."""
    box, right = parse_box(given), parse_box(answer)
    return overlap(box, right) if box is not None and right is not None else 0.0


def chosen(text: str, choices: Sequence[str]) -> str:
    """The choice that a text names by its letter ("B", "(b)", "B. red") or its words; else the
    text as it is."""
    plain = normalised(text)
    for choice in choices:
        if plain == normalised(choice):
            return choice
    for index, choice in enumerate(choices):
        letter = chr(ord("a") + index)
        if re.fullmatch(rf"\(?{letter}\W*(?:{re.escape(choice.casefold())})?\W*", text.casefold()):
            return choice
    return text


def same_calls(answers: Sequence[Any], calls: Sequence[Call]) -> bool:
    """The same calls in any order: name and arguments equal as JSON values."""
    left = [(call.name, call.arguments) for call in calls]
    for answer in answers:
        wanted = (answer["name"], answer["arguments"])
        found = next((call for call in left if json_equal(list(call), list(wanted))), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def json_equal(a: Any, b: Any) -> bool:
    """Equal as JSON values: 1 is 1.0, and neither is true."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(json_equal(value, b[key]) for key, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(json_equal, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return bool(a == b)


_PAIRED: dict[str, Callable[[str, str], bool]] = {
    "exact": exact,
    "contains": contains,
    "relaxed": relaxed,
}
