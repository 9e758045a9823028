"""Answers under a grammar, drawn by a real model: as the grammar says, whatever the schedule."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.engine.limits import SchedulerLimits
from glimt.engine.loop import EngineLoop
from glimt.engine.scheduler import Scheduler
from glimt.grammar.compiler import GrammarCompiler
from glimt.grammar.matcher import Matcher
from glimt.grammar.source import choice_grammar, json_schema_grammar, regex_grammar
from glimt.wire import EngineInbound, Grammar, Output, Outputs, SamplingParams, Submit
from tests.support.grammars import InlinePool, small_vocabulary
from tests.support.tiny_model import Album, make_executor, tiny_model

MODEL = tiny_model("glm4v")
ALBUM = Album()
VOCABULARY = small_vocabulary()
EOS = VOCABULARY.end_id
HOT: dict[str, Any] = {"temperature": 3.0, "eos_token_ids": (EOS,)}
EXPRESSION = "[a-f]{3}-[0-9]{1,4}"
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 40}, "b": {"enum": ["x", 0]}},
    "required": ["n", "b"],
    "additionalProperties": False,
}


def under(text: str) -> dict[str, Any]:
    return {**HOT, "grammar": Grammar(text=text)}


KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    under(regex_grammar(EXPRESSION)),
    under(json_schema_grammar(SCHEMA, whitespace="")),
    under(choice_grammar(["yes", "no", "perhaps"])) | {"temperature": 0.0},
    under(regex_grammar("[x-z]*")) | {"top_k": 5, "repetition_penalty": 1.3, "logprobs": 2},
)


def is_whole(kind: int, text: str) -> bool:
    """Whether a whole answer of this kind is as its grammar says."""
    if kind == 2:
        return re.fullmatch(r'\{"n":([1-9]|[1-3][0-9]|40),"b":("x"|0)\}', text) is not None
    expression = ("(?s:.*)", EXPRESSION, "", "yes|no|perhaps", "[x-z]*")[kind]
    return re.fullmatch(expression, text) is not None


def submit(request_id: int, seed: int, max_tokens: int = 24, **sampling: Any) -> Submit:
    generator = np.random.default_rng(seed)
    token_ids = generator.integers(0, 200, 3 + seed % 11).astype(np.int32)
    return Submit(
        request_id=request_id,
        server=0,
        token_ids=token_ids.tobytes(),
        sampling=SamplingParams(max_tokens=max_tokens, seed=seed, **sampling),
    )


class Post:
    """A mailbox that brings requests and takes answers."""

    def __init__(self, submits: list[Submit]) -> None:
        self.waiting = list(submits)
        self.outputs: dict[int, list[Output]] = {each.request_id: [] for each in submits}

    def receive(self, timeout_s: float) -> list[EngineInbound]:
        new, self.waiting = self.waiting[:2], self.waiting[2:]
        return [*new]

    def send(self, server: int, outputs: Outputs) -> None:
        for output in outputs.outputs:
            self.outputs[output.request_id].append(output)

    @property
    def is_answered(self) -> bool:
        ends = [outputs[-1:] for outputs in self.outputs.values()]
        return not self.waiting and all(end and end[0].finish_reason for end in ends)


def answer(
    submits: list[Submit],
    *,
    overlap: bool = True,
    num_pages: int = 64,
    may_fail: bool = False,
    **changes: Any,
) -> dict[int, list[Output]]:
    """What the real engine, over the real executor, says to these requests."""
    fields: dict[str, Any] = {"max_num_seqs": 8, "max_num_batched_tokens": 64, **changes}
    limits = SchedulerLimits(
        num_pages=num_pages,
        page_size=4,
        max_model_len=48,
        image_budget=0,
        image_cache_tokens=0,
        vocab_size=VOCABULARY.size,
        **fields,
    )
    scheduler = Scheduler(limits, compiler=GrammarCompiler(VOCABULARY, InlinePool()))
    executor = make_executor(
        MODEL, ALBUM, num_pages=num_pages, max_num_seqs=limits.max_num_seqs, max_model_len=48
    )
    post = Post(submits)
    loop = EngineLoop(scheduler, executor, post, overlap=overlap)
    for _ in range(3000):
        if post.is_answered:
            break
        loop.turn()
    assert post.is_answered
    assert scheduler.roster.check() == []
    assert may_fail or not any(end[-1].error for end in post.outputs.values())
    return post.outputs


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def text_of(outputs: list[Output]) -> str:
    ids = [token for token in tokens(outputs) if token != EOS]
    return VOCABULARY.library.decode_bytes(ids).decode("utf-8", "replace")


@cache
def alone(kind: int, seed: int) -> tuple[list[int], str | None]:
    outputs = answer([submit(0, seed, **KINDS[kind])], overlap=False)[0]
    return tokens(outputs), outputs[-1].finish_reason


@settings(max_examples=15)
@given(
    chosen=st.lists(
        st.tuples(st.integers(0, len(KINDS) - 1), st.integers(0, 20)), min_size=1, max_size=5
    ),
    overlap=st.booleans(),
    num_pages=st.integers(12, 40),
    max_num_seqs=st.integers(1, 5),
    extra=st.integers(0, 20),
    prefix_caching=st.booleans(),
)
def test_no_schedule_changes_an_answer_under_a_grammar_or_beside_one(
    chosen: list[tuple[int, int]],
    overlap: bool,
    num_pages: int,
    max_num_seqs: int,
    extra: int,
    prefix_caching: bool,
) -> None:
    """Chunked prompts, company, preemption, overlap, cached prefixes."""
    outputs = answer(
        [submit(place, seed, **KINDS[kind]) for place, (kind, seed) in enumerate(chosen)],
        overlap=overlap,
        num_pages=num_pages,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + extra,
        prefix_caching=prefix_caching,
    )
    for place, (kind, seed) in enumerate(chosen):
        one = outputs[place]
        assert (tokens(one), one[-1].finish_reason) == alone(kind, seed)
        if one[-1].finish_reason == "stop":
            assert is_whole(kind, text_of(one))


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_sampled_answers_are_as_their_grammar_says(kind: int) -> None:
    submits = [submit(seed, seed, max_tokens=30, **KINDS[kind]) for seed in range(16)]
    answers = answer(submits, num_pages=256)
    ends = [outputs[-1].finish_reason for outputs in answers.values()]
    assert ends.count("stop") >= 4
    for outputs in answers.values():
        if outputs[-1].finish_reason == "stop":
            assert is_whole(kind, text_of(outputs)), text_of(outputs)


def test_logprobs_are_those_of_the_model_without_the_grammar() -> None:
    """As under penalties and allowed_token_ids: the raw distribution."""
    fields = {**KINDS[1], "logprobs": 320}
    [constrained] = answer([submit(0, 3, **fields)]).values()
    token, logprobs = constrained[0].token_ids[0], constrained[0].logprobs
    [free] = answer([submit(0, 3, **{**fields, "grammar": None, "max_tokens": 1})]).values()
    assert logprobs is not None
    assert free[0].logprobs is not None
    assert dict(logprobs[0].top) == pytest.approx(dict(free[0].logprobs[0].top), abs=1e-5)
    assert logprobs[0].logprob == pytest.approx(dict(logprobs[0].top)[token])


def test_a_grammar_and_another_wish_that_leave_nothing_end_only_their_own_request() -> None:
    bad = submit(0, 1, **{**KINDS[3], "allowed_token_ids": (0,)})
    outputs = answer([bad, submit(1, 2, **KINDS[1])], may_fail=True)
    error = outputs[0][-1].error
    assert error is not None
    assert error.code == "invalid_request"
    assert "grammar" in error.message
    assert (tokens(outputs[1]), outputs[1][-1].finish_reason) == alone(1, 2)


@pytest.mark.parametrize("min_tokens", [1, 6])
def test_min_tokens_hold_an_answer_back_from_ending_where_it_can_go_on(min_tokens: int) -> None:
    fields = {**KINDS[4], "min_tokens": min_tokens, "logit_bias": {EOS: 100.0}, "logprobs": None}
    [outputs] = answer([submit(0, 5, **fields)]).values()
    assert len(tokens(outputs)) == min_tokens + 1
    assert outputs[-1].finish_reason == "stop"


def test_an_answer_that_cannot_go_on_ends_before_min_tokens() -> None:
    fields = {**KINDS[3], "min_tokens": 20}
    [outputs] = answer([submit(0, 5, **fields)]).values()
    assert text_of(outputs) in ("yes", "no", "perhaps")
    assert outputs[-1].finish_reason == "stop"
    assert outputs[-1].stop_token_id is None


def test_without_end_tokens_an_answer_fills_its_length() -> None:
    """Under ignore_eos."""
    fields = {**KINDS[4], "eos_token_ids": (), "logprobs": None}
    [outputs] = answer([submit(0, 5, **fields)]).values()
    assert outputs[-1].finish_reason == "length"
    assert is_whole(4, text_of(outputs))


def test_a_grammar_that_takes_only_nothing_gives_an_empty_answer() -> None:
    [outputs] = answer([submit(0, 5, **under(regex_grammar("")))]).values()
    assert tokens(outputs) == []
    assert outputs[-1].finish_reason == "stop"


@pytest.mark.parametrize("method", ["fill", "accept"])
def test_a_grammar_that_fails_in_the_middle_ends_its_own_request_alone(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[Matcher]()
    victims: list[Matcher] = []
    whole = getattr(Matcher, method)

    def failing(self: Matcher, what: Any) -> None:
        calls[self] += 1
        if calls[self] == 5 and not victims:
            victims.append(self)
            raise RuntimeError("a bug")
        whole(self, what)

    answers = [alone(1, 2), alone(2, 3)]
    monkeypatch.setattr(Matcher, method, failing)
    submits = [submit(0, 2, **KINDS[1]), submit(1, 3, **KINDS[2])]
    outputs = answer(submits, may_fail=True)
    failed = [n for n, each in outputs.items() if each[-1].error is not None]
    assert len(failed) == 1
    (error,) = (outputs[n][-1].error for n in failed)
    assert error is not None
    assert error.code == "engine_failed"
    for n, expected in enumerate(answers):
        if n not in failed:
            assert (tokens(outputs[n]), outputs[n][-1].finish_reason) == expected
