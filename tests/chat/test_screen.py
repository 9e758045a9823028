"""What is written where: to people, and to programs."""

import io

import pytest

from glimt.chat.screen import Look, Screen, look_of
from glimt.chat.server import Delta, PromptDetails, Usage
from glimt.chat.view import AnswerView

PEOPLE = Look(is_terminal=True, can_erase=True, colours="true", has_blocks=True)
PLAIN = Look(is_terminal=True)


class Terminal(io.TextIOWrapper):
    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding)

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "look"),
    [
        ({"TERM": "xterm-256color"}, Look(True, True, "256", True)),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, Look(True, True, "true", True)),
        ({"TERM": "foot", "COLORTERM": "24bit"}, Look(True, True, "true", True)),
        ({"TERM": "linux"}, Look(True, True, "basic", True)),
        ({"TERM": "xterm", "COLORTERM": "truecolor", "NO_COLOR": "1"}, Look(True, True)),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, Look(True, True, "256", True)),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, Look(True)),
        ({}, Look(True)),
    ],
)
def test_the_environment_says_what_a_terminal_can(environment: dict[str, str], look: Look) -> None:
    assert look_of(Terminal(), environment) == look


def test_no_terminal_gets_no_colours_and_no_blocks_where_they_cannot_be_encoded() -> None:
    environment = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    assert look_of(io.StringIO(), environment) == Look()
    assert not look_of(Terminal("latin-1"), environment).has_blocks


def view_of(look: Look, *deltas: Delta) -> tuple[AnswerView, str]:
    """A view that got the deltas a second after each other, and what it wrote."""
    out = io.StringIO()
    ticks = iter(range(100))
    view = AnswerView(out, look, lambda: float(next(ticks)))
    for delta in deltas:
        view.add(delta)
    view.end()
    return view, out.getvalue()


THOUGHT = (Delta(reasoning="\nHm"), Delta(reasoning=".\n"), Delta(content="\n\nA \x1b[2Jcat"))


def test_thoughts_are_dim_and_the_answer_is_not() -> None:
    view, shown = view_of(PEOPLE, *THOUGHT)
    assert shown == "\x1b[2mHm.\n\x1b[0m\nA ␛[2Jcat\n"
    assert view.reply.content == "\n\nA \x1b[2Jcat"
    assert view.reply.reasoning == "\nHm.\n"


def test_without_colours_thoughts_and_answer_have_headings() -> None:
    assert view_of(PLAIN, *THOUGHT)[1] == "(thinking)\nHm.\n\n(answer)\nA ␛[2Jcat\n"
    assert view_of(PLAIN, Delta(content="cat"))[1] == "cat\n"


def test_programs_get_the_answer_alone() -> None:
    assert view_of(Look(), *THOUGHT)[1] == "A ␛[2Jcat\n"


def test_an_answer_that_is_stopped_while_it_thinks_leaves_the_terminal_as_it_was() -> None:
    assert view_of(PEOPLE, Delta(reasoning="Hm"))[1] == "\x1b[2mHm\x1b[0m\n"


def test_what_it_took_is_counted_by_the_server_where_it_counts() -> None:
    usage = Usage(12, 9, PromptDetails(4))
    deltas = (Delta(content="a"), Delta(content="b"), Delta("", "c", "length"), Delta(usage=usage))
    assert view_of(PEOPLE, *deltas)[0].summary() == (
        "9 tokens · first after 1.00 s · 4.0 tokens/s · prompt 12 (4 cached)"
        " · cut at the token limit"
    )
    assert view_of(PEOPLE, *deltas[:2])[0].summary() == (
        "about 2 tokens · first after 1.00 s · 1.0 tokens/s"
    )
    assert view_of(PEOPLE)[0].summary() == "about 0 tokens"


def test_notes_are_for_people_and_complaints_for_everybody() -> None:
    for look, expected in (
        (PEOPLE, "\x1b[2mhi ␛\x1b[0m\n\x1b[31mglimt:\x1b[0m no\n"),
        (Look(), "glimt: no\n"),
    ):
        notes = io.StringIO()
        screen = Screen(io.StringIO(), notes, look)
        screen.say("hi \x1b")
        screen.complain("no")
        assert notes.getvalue() == expected
