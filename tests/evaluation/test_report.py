"""The report is one file that shows everything and loads nothing."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from glimt.evaluation import report
from glimt.evaluation.asking import Asked
from glimt.evaluation.comparison import Results, compare
from glimt.evaluation.divergence import Place, divergence_of
from glimt.evaluation.replies import Call, Reply
from glimt.evaluation.results import side_of
from glimt.evaluation.tasks import TaskFile, read_tasks
from glimt.evaluation.wishes import EvalWishes
from tests.evaluation.support import TASKS, TOOL, write_tasks

HOSTILE = "</script><script>alert(1)</script><img src=http://evil.example/x.png>"
CALL: dict[str, Any] = {"name": "mark", "arguments": {"colour": "red"}}
REPLIES = [
    Reply(text="3"),
    Reply(text=HOSTILE, reasoning=HOSTILE),
    Reply(text="<|begin_of_box|>[[120,100,400,1400]]<|end_of_box|>"),
    Reply(error="timeout", error_message="no answer in time"),
    Reply(text="It moves left."),
    Reply(text="rad"),
    Reply(calls=(Call("mark", {"colour": "red"}),)),
    Reply(text="I call nothing.", calls=(Call("mark", {"colour": "red"}),)),
]


class Page(HTMLParser):
    """Tags with attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def file(tmp_path: Path) -> TaskFile:
    tool = {"id": "x-1", "skill": HOSTILE, "question": HOSTILE, "tools": [TOOL]}
    path = write_tasks(tmp_path, [*TASKS, {**tool, "answer": CALL, "metric": "tool_call"}])
    return read_tasks(path)


def rendered(file: TaskFile, *replies_of: list[Reply]) -> str:
    wishes = EvalWishes()
    sides = [
        side_of(HOSTILE, file.tasks, Asked({}, dict(enumerate(replies)), 2.0, True), wishes)
        for replies in replies_of
    ]
    comparison = None
    if len(sides) == 2:
        places = [[Place(0.25, True, 0.1, 0.2), Place(0.0, False, 0.1, 0.2)]]
        comparison = compare(
            *sides, divergence=divergence_of(places, "logits"), divergence_note="By hand."
        )
    results = Results(
        created="2026-01-02T03:04:05+00:00",
        tasks_file={"name": file.name, "sha256": file.sha256, "num_tasks": len(file.tasks)},
        settings={},
        versions={"glimt": "0"},
        sides=sides,
        comparison=comparison,
    )
    return report.render_report(results, file.tasks, file.files)


def test_the_page_shows_every_task_with_pictures_answers_and_verdicts(file: TaskFile) -> None:
    page = Page(rendered(file, REPLIES))
    cards = page.all("article")
    assert [card["data-skill"] for card in cards] == [task.skill for task in file.tasks]
    assert ["wrong" in (card.get("class") or "") for card in cards] == [
        *(False, True, True, True, False, False, False, False)
    ]
    assert len(page.all("img")) == 1 + 1 + 1 + 2 + 1 + 1 + 1
    for text in (
        "How many?",
        "assistant: A pattern.",
        '"description": "Marks a thing."',
        "It moves left.",
        "timeout",
        'mark({"colour": "red"})',
        "5 of 8",
    ):
        assert text in page.text


def test_boxes_are_drawn_over_the_picture_true_and_answered(file: TaskFile) -> None:
    rects = [each for each in Page(rendered(file, REPLIES)).all("rect") if "class" in each]
    assert [
        (each["class"], each["x"], each["y"], each["width"], each["height"]) for each in rects
    ] == [
        ("true", "100.0", "100.0", "300.0", "300.0"),
        ("a", "120.0", "100.0", "280.0", "900.0"),  # cut off at the picture's edge
    ]


def test_nothing_is_loaded_and_no_text_becomes_markup(file: TaskFile) -> None:
    text = rendered(file, REPLIES)
    page = Page(text)
    assert len(page.all("script")) == 1
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"url\(|@import", style)
    [policy] = [each["content"] for each in page.all("meta") if "http-equiv" in each]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_same_answers_do_not_differ(file: TaskFile) -> None:
    page = Page(rendered(file, REPLIES, REPLIES))
    assert not any("differs" in (card.get("class") or "") for card in page.all("article"))


def test_two_models_stand_side_by_side(file: TaskFile) -> None:
    page = Page(rendered(file, REPLIES, [Reply(text="2")] * 8))
    assert len(page.all("article")) == 8
    classes = [each["class"] for each in page.all("dt") if each["class"] != "true"]
    assert classes == ["a", "b"] * 8
    differing = ["differs" in (card.get("class") or "") for card in page.all("article")]
    assert differing == [True] * 8
    for text in ("KL(A || B): 1.25e-01 nats", "By hand.", "only A right", "-50.0 %"):
        assert text in page.text


def test_mistakes_keep_their_pictures_when_there_are_too_many(
    file: TaskFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_PICTURE_BYTES", 3_000)
    text = rendered(file, REPLIES)
    wrong = [part for part in text.split("<article")[1:] if "wrong" in part.partition(">")[0]]
    right = [part for part in text.split("<article")[1:] if "wrong" not in part.partition(">")[0]]
    assert "<img" in wrong[0]
    assert not any("<img" in part for part in right)
    assert re.search(r"pictures of \d right answers were left out", text)


def test_a_picture_that_cannot_be_shown_leaves_the_rest(file: TaskFile, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    assert len(Page(rendered(file, REPLIES)).all("img")) == 5
