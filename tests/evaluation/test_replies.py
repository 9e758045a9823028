"""What servers and local models send, as replies: calls, thoughts, refusals, and nonsense."""

import json
from typing import Any

import pytest

from glimt.evaluation.local import reply_of as local_reply_of
from glimt.evaluation.remote import error_of, reply_of
from glimt.evaluation.replies import Alternatives, Call
from glimt.frontend.answer import UsageCounts
from glimt.offline.outputs import CompletionOutput, Logprob, RequestOutput, ToolCall


def completion(message: dict[str, Any], **choice: Any) -> bytes:
    usage = {"prompt_tokens": 5, "completion_tokens": 7}
    return json.dumps(
        {"choices": [{"message": message, "finish_reason": "stop", **choice}], "usage": usage}
    ).encode()


def test_a_servers_answer_with_thoughts_and_counts() -> None:
    reply = reply_of(completion({"content": "3", "reasoning_content": "1, 2, 3"}))
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("3", "1, 2, 3", "stop")
    assert (reply.prompt_tokens, reply.completion_tokens) == (5, 7)


def test_a_servers_calls_become_json_values() -> None:
    functions = [{"name": "mark", "arguments": '{"n": 2}'}, {"name": "mark", "arguments": "{"}]
    calls = [{"id": "1", "type": "function", "function": function} for function in functions]
    reply = reply_of(completion({"content": None, "tool_calls": calls}))
    assert reply.calls == (Call("mark", {"n": 2}), Call("mark", "{"))
    assert reply.text == ""


def test_a_servers_log_probabilities_are_kept() -> None:
    top = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -3.0}]
    content = [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": top}]
    reply = reply_of(completion({"content": "a"}, logprobs={"content": content}))
    assert reply.alternatives == (Alternatives("a", -0.1, (("a", -0.1), ("b", -3.0))),)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b"3"])
def test_what_is_no_completion_is_a_failure(body: bytes) -> None:
    assert reply_of(body).error == "bad_response"


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b'{"error": {"code": "overloaded", "message": "full"}}', "overloaded", "full"),
        (b'{"error": {"code": 400, "message": "bad"}}', "http_400", "bad"),
        (b'{"error": "no"}', "http_400", "no"),
        (b"<html>", "http_400", ""),
    ],
)
def test_refusals_have_a_class_and_a_sentence(body: bytes, error: str, message: str) -> None:
    reply = error_of(400, body)
    assert (reply.error, reply.error_message) == (error, message)


def test_a_local_answer_with_a_call_and_the_chosen_token_first() -> None:
    answer = CompletionOutput(
        index=0,
        text="",
        reasoning="so",
        boxes=[],
        tool_calls=[ToolCall("id", "mark", '{"colour": "red"}')],
        token_ids=[7, 2],
        finish_reason="tool_calls",
        stop_reason=None,
        logprobs=[{7: Logprob(-2.0, 3, "x"), 5: Logprob(-0.5, 1, "y"), 6: Logprob(-1.0, 2, "z")}],
        cumulative_logprob=-2.0,
    )
    reply = local_reply_of(RequestOutput(None, [1, 2], [answer], UsageCounts(2, 2, 0, 1)))
    assert reply.calls == (Call("mark", {"colour": "red"}),)
    assert reply.reasoning == "so"
    assert reply.token_ids == (7, 2)
    assert reply.alternatives == (Alternatives("x", -2.0, (("y", -0.5), ("z", -1.0), ("x", -2.0))),)
