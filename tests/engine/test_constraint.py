"""Constraint: what may come next in an answer under a grammar, with and without thoughts."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from glimt.engine.constraint import Constraint, Phase
from glimt.errors import BadGrammar
from glimt.grammar.source import choice_grammar, lark_grammar, regex_grammar
from glimt.wire import Grammar, ThoughtTokens
from tests.support.grammars import ids_in, tiny_compiler, tiny_language

TOKENIZER = tiny_language()[0]
COMPILER = tiny_compiler()
CONTROL = TOKENIZER.control_tokens
THINK, END_THINK, CALL = (CONTROL[t] for t in ("<think>", "</think>", "<tool_call>"))
EOS, USER = CONTROL["<|endoftext|>"], CONTROL["<|user|>"]
(NEWLINE,) = TOKENIZER.encode_text("\n")
(A,), (B,) = TOKENIZER.encode_text("q"), TOKENIZER.encode_text("z")
THOUGHTS = ThoughtTokens(begin=THINK, end=END_THINK, leave=(CALL,), line_breaks=(NEWLINE,))


def constraint(
    text: str,
    channel: str = "content",
    *,
    eos: tuple[int, ...] = (EOS, USER),
    own: bool = False,
    instead: tuple[int, ...] = (),
) -> Constraint:
    grammar = Grammar(
        text=text,
        allows_control=own,
        channel=channel,
        thoughts=None if channel == "content" else THOUGHTS,
        instead=instead,
    )
    grammar = msgspec.msgpack.decode(msgspec.msgpack.encode(grammar), type=Grammar)
    return Constraint(grammar, COMPILER.start(text).result(), eos)


def allowed(one: Constraint) -> set[int]:
    bits_W = np.empty(one.num_words, np.uint32)
    assert one.fill(bits_W)
    return ids_in(bits_W)


def test_the_end_is_allowed_only_where_the_grammar_accepts() -> None:
    one = constraint(regex_grammar("qz*"))
    assert allowed(one) == {A}
    assert not one.advance(A)
    assert allowed(one) == {B, EOS, USER}


def test_an_answer_that_nothing_can_follow_is_complete() -> None:
    one = constraint(regex_grammar("qz?"))
    assert not one.advance(A)
    assert one.advance(B)


def test_without_end_tokens_an_answer_goes_on_as_long_as_it_can() -> None:
    """Under ignore_eos."""
    one = constraint(regex_grammar("qz*"), eos=())
    one.advance(A)
    assert allowed(one) == {B}


def test_a_grammar_that_takes_only_nothing_is_complete_at_once() -> None:
    one = constraint(regex_grammar(""))
    assert not one.fill(np.empty(one.num_words, np.uint32))


def test_thoughts_are_free_but_for_what_would_end_the_answer_in_them() -> None:
    one = constraint(regex_grammar("q+"), "reasoning")
    free = allowed(one)
    assert free >= {A, B, NEWLINE, THINK, END_THINK}
    assert not free & {EOS, USER, CALL}
    assert not one.advance(B)
    assert not one.advance(END_THINK)
    assert one.phase is Phase.CLOSED
    assert allowed(one) == {A, NEWLINE}


@pytest.mark.parametrize("breaks", [True, False])
def test_a_line_break_after_the_thoughts_is_no_part_of_the_answer(breaks: bool) -> None:
    one = constraint(choice_grammar(["q"]), "reasoning")
    one.advance(END_THINK)
    if breaks:
        assert not one.advance(NEWLINE)
        assert allowed(one) == {A}
    assert one.advance(A)


def test_a_model_that_may_think_decides_by_its_first_token() -> None:
    thinking, answering = (constraint(regex_grammar("qz*"), "undecided") for _ in range(2))
    assert allowed(thinking) == {A, THINK, NEWLINE}
    thinking.advance(THINK)
    assert allowed(thinking) >= {B, END_THINK}
    answering.advance(A)
    assert allowed(answering) == {B, EOS, USER}


def test_after_a_line_break_that_the_grammar_does_not_know_thoughts_follow() -> None:
    one = constraint(choice_grammar(["q"]), "undecided")
    one.advance(NEWLINE)
    assert allowed(one) == {THINK}
    one.advance(THINK)
    one.advance(END_THINK)
    assert one.advance(A)


def test_a_line_break_that_the_grammar_knows_may_begin_the_answer_or_the_thoughts() -> None:
    one = constraint(regex_grammar("\nq"), "undecided")
    one.advance(NEWLINE)
    assert allowed(one) == {A, THINK}
    one.advance(THINK)
    one.advance(END_THINK)
    assert allowed(one) == {NEWLINE}
    one.advance(NEWLINE)
    assert one.advance(A)


def test_a_grammar_of_calls_may_begin_within_the_thoughts() -> None:
    text = lark_grammar('start: <tool_call> "q"')
    one = constraint(text, "reasoning", own=True)
    assert CALL in allowed(one)
    assert not one.advance(CALL)
    assert one.advance(A)


def test_a_clients_grammar_cannot_name_control_tokens() -> None:
    text = lark_grammar(f'start: "q" (<|system|> | <[{CALL}]> | "z")')
    one = constraint(text)
    one.advance(A)
    assert allowed(one) == {B}
    own = constraint(text, own=True)
    own.advance(A)
    assert allowed(own) == {B, CONTROL["<|system|>"], CALL}


def test_a_grammar_that_comes_to_a_dead_end_is_an_error() -> None:
    one = constraint(lark_grammar('start: "q" <|user|> "z"'))
    one.advance(A)
    with pytest.raises(BadGrammar):
        one.fill(np.empty(one.num_words, np.uint32))


def test_a_token_outside_the_mask_is_an_error() -> None:
    with pytest.raises(BadGrammar):
        constraint(choice_grammar(["q"])).advance(B)


@pytest.mark.parametrize("channel", ["content", "undecided", "reasoning"])
def test_calls_may_stand_in_the_place_of_the_answer_and_are_free(channel: str) -> None:
    one = constraint(choice_grammar(["qz"]), channel, instead=(CALL,))
    assert CALL in allowed(one)
    assert not one.advance(CALL)
    assert allowed(one) >= {B, CONTROL["</tool_call>"], EOS, USER}
    assert not one.advance(B)
    answers = constraint(choice_grammar(["qzq"]), instead=(CALL,))
    answers.advance(A)
    assert allowed(answers) == {B}


class Costly:
    """A clock on which everything takes so long."""

    def __init__(self, cost_s: float) -> None:
        self.now_s, self.cost_s = 0.0, cost_s

    def __call__(self) -> float:
        self.now_s += self.cost_s
        return self.now_s


@pytest.mark.parametrize(("cost_s", "num_tokens"), [(0.3, 0), (0.02, 8), (0.004, 1000)])
def test_a_grammar_that_costs_too_much_for_its_tokens_is_ended(
    cost_s: float, num_tokens: int
) -> None:
    """At once, or on average; what is cheap may go on for ever."""
    grammar = Grammar(text=regex_grammar("q*"))
    one = Constraint(grammar, COMPILER.start(grammar.text).result(), (), Costly(cost_s))
    bits_W = np.empty(one.num_words, np.uint32)
    for _ in range(num_tokens):
        one.fill(bits_W)
        one.advance(A)
    if num_tokens < 1000:
        with pytest.raises(BadGrammar, match="takes too long"):  # noqa: PT012 - whichever first
            one.fill(bits_W)
            one.advance(A)
