"""Nothing that a model writes can steer a terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.chat.text import columns, harmless, one_line

ANY_TEXT = st.text(st.characters(), max_size=80)
HOSTILE = st.lists(
    st.sampled_from(
        ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\r", "\x08", "\u202e", "a", "\ud800"]
    )
).map("".join)


@given(ANY_TEXT | HOSTILE)
def test_no_text_keeps_control_characters_but_line_feeds_and_tabs(text: str) -> None:
    shown = harmless(text)
    assert not [
        each for each in shown if unicodedata.category(each) in ("Cc", "Cs") and each not in "\n\t"
    ]
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    shown.encode("utf-8")


@given(ANY_TEXT | HOSTILE, st.integers(0, 80))
def test_a_text_in_pieces_is_as_harmless_as_the_whole(text: str, cut: int) -> None:
    assert harmless(text[:cut]) + harmless(text[cut:]) == harmless(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "␛[31mred"),
        ("\x1b]52;c;ZXZpbA==\x07", "␛]52;c;ZXZpbA==␇"),
        ("100 %\r  0 %", "100 %  0 %"),
        ("one\r\ntwo\tthree", "one\ntwo\tthree"),
        ("password\x08\x08", "password␈␈"),
        ("\x7f\x9b2J", "␡\ufffd2J"),
        ("ångström 日本 👩‍🚀", "ångström 日本 👩‍🚀"),
    ],
)
def test_what_was_there_can_be_seen(text: str, shown: str) -> None:
    assert harmless(text) == shown


@given(ANY_TEXT, st.integers(1, 40))
def test_one_line_is_one_line_of_the_width(text: str, width: int) -> None:
    line = one_line(text, width)
    assert columns(line) <= width
    assert "\n" not in line


def test_a_short_line_is_left_whole_and_a_long_one_says_that_it_is_cut() -> None:
    assert one_line("weights:  50 %", 20) == "weights: 50 %"
    assert one_line("日本語の長い文", 7) == "日本語…"
