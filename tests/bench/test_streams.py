"""Bytes of event streams to chunks: whatever the cuts, line ends, dialects and lies."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.bench.load.dialects import (
    Answer,
    Dialect,
    read_chat,
    read_completion,
    read_responses,
)
from glimt.bench.load.http import Exchange
from glimt.bench.load.outcome import judge, tokens_per_chunk
from glimt.bench.load.sse import messages

EVENTS = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"reasoning": "naïve "}}]},
    {"choices": [{"delta": {"content": "日本語 line\u2028separator"}}]},
    {"choices": [{"delta": {"content": ""}}]},
    {"choices": [{"delta": {"content": "🙂\nend"}}]},
    {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}},
]


def encoded(events: list[dict[str, Any]], end: str = "\n") -> bytes:
    lines = [f"data: {json.dumps(event, ensure_ascii=False)}" for event in events]
    return "".join(f"{line}{end}{end}" for line in [": ping", *lines, "data: [DONE]"]).encode()


def chat(events: list[dict[str, Any]]) -> Answer:
    return read_chat(messages([(5, encoded(events))]))


@given(cuts=st.lists(st.integers(1, 600), max_size=40), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_where_reads_cut_a_stream_does_not_matter(cuts: list[int], end: str) -> None:
    stream = encoded(EVENTS, end)
    edges = [0, *sorted({cut for cut in cuts if cut < len(stream)}), len(stream)]
    reads = [(k, stream[a:b]) for k, (a, b) in enumerate(pairwise(edges))]
    answer = read_chat(messages(reads))
    assert "".join(answer.kinds) == "rcsc"
    assert "".join(answer.content) == "日本語 line\u2028separator🙂\nend"
    assert answer.reasoning == ["naïve "]
    assert answer.finish_reason == "stop"
    assert answer.is_done
    assert answer.usage["completion_tokens"] == 4
    assert answer.chunk_ns == sorted(answer.chunk_ns)


def test_a_message_is_stamped_with_the_read_that_completed_it() -> None:
    one = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    reads = [(10, one[:9]), (20, one[9:-1]), (30, one[-1:] + one + one[:4]), (40, one[4:])]
    assert read_chat(messages(reads)).chunk_ns == [30, 30, 40]


def test_the_last_message_counts_even_without_its_empty_line() -> None:
    reads = [(1, b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}')]
    answer = read_chat(messages(reads))
    assert (answer.chunk_ns, answer.finish_reason) == ([1], "stop")


@pytest.mark.parametrize(
    ("delta", "kinds"),
    [
        ({"role": "assistant", "content": ""}, ""),
        ({"role": "assistant", "content": None}, ""),
        ({"role": "assistant"}, ""),
        ({"role": "assistant", "content": "x"}, "c"),
        ({"reasoning": "x"}, "r"),
        ({"reasoning_content": "x"}, "r"),
        ({"reasoning": "x", "reasoning_content": "x"}, "r"),
        ({"reasoning": "x", "content": "y"}, "c"),
        ({"tool_calls": [{"index": 0}]}, "t"),
        ({"function_call": {"name": "f"}}, "t"),
        ({"content": ""}, "s"),
        ({}, ""),
    ],
)
def test_only_chunks_with_generated_tokens_count(delta: dict[str, Any], kinds: str) -> None:
    assert "".join(chat([{"choices": [{"delta": delta}]}]).kinds) == kinds


def test_an_empty_last_chunk_is_told_apart_from_a_token_without_text() -> None:
    last = {"choices": [{"delta": {"content": ""}, "finish_reason": "length"}]}
    assert chat([last]).kinds == ["e"]


def test_completions_and_responses_are_read_in_their_own_dialects() -> None:
    text = [{"choices": [{"text": "a"}]}, {"choices": [{"text": "", "finish_reason": "stop"}]}]
    answer = read_completion(messages([(1, encoded(text))]))
    assert (answer.kinds, answer.finish_reason) == (["c", "e"], "stop")
    stream = (
        b'event: response.created\ndata: {"type":"response.created","response":{}}\n\n'
        b'event: x\ndata: {"type":"response.reasoning_text.delta","delta":"hm"}\n\n'
        b'event: x\ndata: {"type":"response.output_text.delta","delta":"ok"}\n\n'
        b'data: {"type":"response.completed","response":{"status":"completed","usage":'
        b'{"input_tokens":3,"output_tokens":2,"output_tokens_details":{"reasoning_tokens":1}}}}\n\n'
    )
    answer = read_responses(messages([(1, stream)]))
    assert answer.kinds == ["r", "c"]
    assert answer.finish_reason == "stop"
    assert answer.usage["completion_tokens_details"] == {"reasoning_tokens": 1}


def test_an_error_event_and_an_unreadable_message_are_not_overlooked() -> None:
    told = chat([{"error": {"message": "out of memory"}}])
    assert told.error == "out of memory"
    broken = read_chat(messages([(1, b"data: {nonsense\n\n")]))
    assert broken.is_broken
    failed = read_responses(messages([(1, b'data: {"type":"error","message":"no"}\n\n')]))
    assert failed.error == "no"


def test_continuous_counts_give_each_chunk_its_tokens() -> None:
    def counted(total: int | None) -> dict[str, Any]:
        usage = {} if total is None else {"usage": {"completion_tokens": total}}
        return {"choices": [{"delta": {"content": "x"}}], **usage}

    assert tokens_per_chunk(chat([counted(2), counted(None), counted(5)])) == [2, 0, 3]
    assert tokens_per_chunk(chat([counted(None), counted(5)])) is None


@given(
    data=st.binary(max_size=300),
    dialect=st.sampled_from([read_chat, read_completion, read_responses]),
)
def test_no_bytes_whatsoever_raise(data: bytes, dialect: Dialect) -> None:
    answer = dialect(messages([(1, data[:100]), (2, data[100:])]))
    exchange = Exchange(status=200, reads=[(1, data)])
    assert judge(exchange, answer)[0] in ("broken", "error_event", "truncated", "no_tokens", None)
