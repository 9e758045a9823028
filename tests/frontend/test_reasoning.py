"""Thoughts and content of a reply, whatever the model writes and however its tokens come."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glimt.frontend.prompt import IntArray
from glimt.frontend.reasoning import ReasoningSplitter, ReasoningTokens
from glimt.frontend.reply import ReplyDelta, ReplyReader, fold
from tests.support.prompts import STYLES, tokenizer, tokenizer_without

UNDECIDED = "[gMASK]<sop><|user|>\nq<|assistant|>\n"
EARLIER_PAIR = "<|user|>\nq<|assistant|>\n<think></think>\na<|user|>\nq<|assistant|>\n"
CLOSED = UNDECIDED + "<think></think>\n"
OPENED = UNDECIDED + "<think>"


def _ids(text: str, style: str = "4.5") -> list[int]:
    return tokenizer(style).encode_template(text)


def _prompt(text: str, style: str = "4.5") -> IntArray:
    return np.array(_ids(text, style), np.int32)


def _tokens(style: str = "4.5") -> ReasoningTokens:
    tokens = ReasoningTokens.of(tokenizer(style))
    assert tokens is not None
    return tokens


def _reader(prompt: str, style: str = "4.5", *, parse: bool = True, **kwargs) -> ReplyReader:
    tokens = _tokens(style) if parse else None
    skip = tokenizer(style).skip_ids
    return ReplyReader(tokenizer(style), tokens, _prompt(prompt, style), skip_ids=skip, **kwargs)


def _deltas(reader: ReplyReader, token_ids: list[int], cuts: list[int]) -> list[ReplyDelta]:
    edges = [0, *sorted(min(cut, len(token_ids)) for cut in cuts), len(token_ids)]
    pushes = [token_ids[begin:end] for begin, end in itertools.pairwise(edges)]
    return [*(reader.push(token_ids) for token_ids in pushes), reader.finish()]


def _read(prompt: str, reply: str, **kwargs) -> tuple[str, str]:
    token_ids = _ids(reply, kwargs.get("style", "4.5"))
    one_by_one = list(range(len(token_ids)))
    whole = fold(_deltas(_reader(prompt, **kwargs), token_ids, one_by_one))
    return whole.reasoning, whole.content


@pytest.mark.parametrize(
    ("prompt", "reply", "reasoning", "content"),
    [
        (UNDECIDED, "<think>why</think>\n\nbecause", "why", "because"),
        (UNDECIDED, "<think>\n why \n</think> because \n", "why", "because \n"),
        (UNDECIDED, "\n<think>why</think>because", "why", "because"),
        (UNDECIDED, "because", "", "because"),
        (UNDECIDED, " \n because", "", " \n because"),
        (UNDECIDED, " \n ", "", " \n "),
        (UNDECIDED, "", "", ""),
        (UNDECIDED, "why \n</think>\nbecause", "", "why \nbecause"),
        (UNDECIDED, "</think>\nbecause", "", "because"),
        (UNDECIDED, "<think></think>because", "", "because"),
        (UNDECIDED, "<think>no end", "no end", ""),
        (UNDECIDED, "<think>no end \n", "no end", ""),
        (UNDECIDED, "<think>a<think>b</think>c</think>d", "ab", "cd"),
        (UNDECIDED, "<think>a</think>b<think>c</think>\nd", "ac", "bd"),
        (UNDECIDED, "<think>a<tool_call>f\n</tool_call>", "a", "<tool_call>f\n</tool_call>"),
        (UNDECIDED, "x<tool_call>f</tool_call>", "", "x<tool_call>f</tool_call>"),
        (UNDECIDED, "<think>a</think><|begin_of_box|>5<|end_of_box|><|user|>", "a",
         "<|begin_of_box|>5<|end_of_box|>"),
        (EARLIER_PAIR, "<think>why</think>\nbecause", "why", "because"),
        (EARLIER_PAIR, "because", "", "because"),
        (CLOSED, "because", "", "because"),
        (CLOSED, "\nbecause", "", "\nbecause"),
        (CLOSED, "because</think>", "", "because"),
        (OPENED, "why</think>\nbecause", "why", "because"),
        (OPENED, "\nwhy", "why", ""),
    ],
)  # fmt: skip
def test_replies_are_split(prompt: str, reply: str, reasoning: str, content: str) -> None:
    assert _read(prompt, reply) == (reasoning, content)


def test_without_a_parser_marks_are_text() -> None:
    reply = "<think>why</think>\nbecause"
    assert _read(UNDECIDED, reply, parse=False) == ("", reply)


@pytest.mark.parametrize(
    ("reply", "reasoning", "content"),
    [
        ("<think>why</think><answer>because</answer>", "why", "because"),
        ("<think>why</think>\n<answer>\nbecause</answer>", "why", "because"),
        ("<answer>because</answer>", "", "because"),
        ("<answer> a </answer> b", "", "a b"),
    ],
)
def test_answer_tags_of_the_older_generation_are_dropped(reply, reasoning, content) -> None:
    assert _read(UNDECIDED, reply, style="4.1") == (reasoning, content)


_MARKS = st.sampled_from(["<think>", "</think>", "<tool_call>", "<answer>", "</answer>"])
_REPLIES = st.lists(st.one_of(_MARKS, st.text(st.sampled_from("ab \n€"), max_size=5)), max_size=8)
_CUTS = st.lists(st.integers(0, 40), max_size=10)
_PROMPTS = st.sampled_from([UNDECIDED, EARLIER_PAIR, CLOSED, OPENED])
_STOPS = st.lists(st.sampled_from(["a", "ab", "b \n", "€€"]), max_size=2)


@given(_REPLIES, _CUTS, _PROMPTS, st.sampled_from(STYLES), _STOPS, st.integers(0, 6))
@example(["ab ", "ab", "</think>", "b"], [2], UNDECIDED, "4.5", [], 0)
@example(["ab", "<think>", "a"], [1, 2], UNDECIDED, "4.5", ["b"], 3)
def test_deltas_fold_to_the_same_reply_however_it_came(
    parts, cuts, prompt, style, stop, min_tokens
) -> None:
    token_ids = _ids("".join(parts), style)
    whole, cut = (
        fold(_deltas(_reader(prompt, style, stop=stop, min_tokens=min_tokens), token_ids, edges))
        for edges in ([], cuts)
    )
    assert cut == whole
    assert whole.reasoning == whole.reasoning.strip()


@given(_REPLIES, _CUTS, _PROMPTS)
def test_a_stream_adds_up(parts, cuts, prompt) -> None:
    deltas = _deltas(_reader(prompt), _ids("".join(parts)), cuts)
    whole = fold(deltas)
    assert whole.content == "".join(delta.content for delta in deltas)
    assert whole.reasoning == "".join(delta.reasoning for delta in deltas)


@given(st.text(st.sampled_from("ab \n"), max_size=8), st.text(st.sampled_from("ab \n"), max_size=8))
def test_splitting_equals_cutting_the_text_at_the_mark(thought: str, answer: str) -> None:
    for prompt, opening in ((UNDECIDED, "<think>"), (OPENED, "")):
        reasoning, content = _read(prompt, f"{opening}{thought}</think>{answer}")
        assert (reasoning, content) == (thought.strip(), answer.lstrip())


@given(_REPLIES, _CUTS, _PROMPTS)
def test_every_token_but_the_marks_is_in_one_piece(parts, cuts, prompt) -> None:
    token_ids = _ids("".join(parts))
    splitter = ReasoningSplitter(_tokens(), _prompt(prompt))
    edges = [0, *sorted(min(cut, len(token_ids)) for cut in cuts), len(token_ids)]
    pieces = [
        piece
        for begin, end in itertools.pairwise(edges)
        for piece in splitter.push(token_ids[begin:end])
    ]
    marks = {_tokens().begin, _tokens().end}
    kept = [token_id for piece in pieces for token_id in piece.token_ids]
    assert kept == [token_id for token_id in token_ids if token_id not in marks]
    assert splitter.num_reasoning_tokens <= len(kept)


def test_tokens_of_thought_are_counted() -> None:
    for prompt, reply in ((UNDECIDED, "<think>why</think>so"), (OPENED, "why</think>so")):
        reader = _reader(prompt)
        _deltas(reader, _ids(reply), [1, 2])
        assert reader.num_reasoning_tokens == len(_ids("why"))
    reader = _reader(UNDECIDED)
    _deltas(reader, _ids("so"), [])
    assert reader.num_reasoning_tokens == 0


def test_a_stop_string_ends_thoughts_and_content_alike() -> None:
    for prompt in (OPENED, CLOSED):
        reader = _reader(prompt, stop=["STOP"])
        whole = fold(_deltas(reader, _ids("so STOP</think>more"), [1, 3, 4]))
        assert whole.stopped == "STOP"
        assert whole.reasoning + whole.content in ("so", "so ")


def test_a_stop_string_counts_only_after_min_tokens() -> None:
    token_ids = _ids("a") * 5
    for min_tokens in range(6):
        reader = _reader(CLOSED, stop=["a"], min_tokens=min_tokens)
        whole = fold(_deltas(reader, token_ids, [2]))
        assert whole.content == "a" * min_tokens
        assert whole.stopped == ("a" if min_tokens < 5 else None)


def test_a_tokenizer_without_thoughts_has_no_parser() -> None:
    assert ReasoningTokens.of(tokenizer_without("</think>")) is None
