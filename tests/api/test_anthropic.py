"""/v1/messages as Anthropic's official client uses it, and what it must say of itself."""

import asyncio
import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.api.anthropic_schema import MessagesAnswer, MessagesEvent
from glimt.api.tools import ToolSettings
from glimt.errors import BadMedia
from tests.support.http_half import INFO, MODEL, Reply, Serving, spoken
from tests.support.prompts import tokenizer

anthropic = pytest.importorskip("anthropic")

HELLO = [{"role": "user", "content": "hi"}]
IMAGE = {"type": "image", "source": {"type": "url", "url": "data:a"}}
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    "cache_control": {"type": "ephemeral"},
}
CALL = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>"
BOTH = f"<think>hm</think>I look.\n{CALL}\n{CALL}"
TOOLS = ToolSettings.of(tokenizer(), "glm45", auto=True)


def serving(*texts: str, **state: Any) -> Serving:
    return Serving(*map(spoken, texts), tools=TOOLS, parse_reasoning=True, **state)


def sdk(address: str, **options: Any) -> Any:
    return anthropic.AsyncAnthropic(base_url=address, api_key="none", max_retries=0, **options)


async def post(serving: Serving, path: str = "/v1/messages", **fields: Any) -> Reply:
    request = {"model": MODEL, "max_tokens": 64, "messages": HELLO, **fields}
    body = json.dumps({k: v for k, v in request.items() if v is not ...}).encode()
    return await serving.ask("POST", path, body=body)


def events(reply: Reply) -> list[dict[str, Any]]:
    """The data of a stream's events, each named like its type."""
    *whole, rest = reply.body.decode().split("\n\n")
    assert rest == ""
    data = []
    for event in whole:
        name, line = event.split("\n")
        data.append(json.loads(line.removeprefix("data: ")))
        assert name == f"event: {data[-1]['type']}"
    return data


def prompt_of(serving: Serving) -> str:
    ids = np.frombuffer(serving.engine.submits[-1].token_ids, np.int32)
    return tokenizer().decode(ids.tolist())


async def test_the_official_client_gets_thoughts_text_and_usage() -> None:
    one = serving("<think>hm</think>A cat 😀")
    async with one.listening() as address, sdk(address) as client:
        answer = await client.messages.create(
            model=MODEL,
            max_tokens=50,
            system=[{"type": "text", "text": "Be"}, {"type": "text", "text": "short"}],
            messages=[{"role": "user", "content": [IMAGE, {"type": "text", "text": "What?"}]}],
            thinking={"type": "enabled", "budget_tokens": 1024},
        )
    thinking, text = answer.content
    assert (thinking.type, thinking.thinking, bool(thinking.signature)) == ("thinking", "hm", True)
    assert (text.type, text.text) == ("text", "A cat 😀")
    assert (answer.role, answer.type, answer.stop_reason) == ("assistant", "message", "end_turn")
    assert answer.usage.output_tokens == len(one.answers[0])
    num_prompt = len(one.engine.submits[0].token_ids) // 4
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens == num_prompt
    assert answer.usage.output_tokens_details.thinking_tokens == 2
    assert answer._request_id is not None
    assert "Be\n\nshort" in prompt_of(one)


async def test_the_official_client_streams_text_thoughts_and_calls() -> None:
    one = serving(BOTH)
    async with one.listening() as address, sdk(address) as client:
        whole = await client.messages.create(
            model=MODEL, max_tokens=200, messages=HELLO, tools=[WEATHER]
        )
        async with client.messages.stream(
            model=MODEL, max_tokens=200, messages=HELLO, tools=[WEATHER]
        ) as stream:
            texts = [text async for text in stream.text_stream]
            final = await stream.get_final_message()
    assert "".join(texts) == "I look."
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert final.content[2].input == {"city": "Oslo"}
    assert final.stop_reason == whole.stop_reason == "tool_use"
    for ours, theirs in zip(final.content, whole.content, strict=True):
        assert ours.model_dump(exclude={"id"}) == theirs.model_dump(exclude={"id"})
    assert final.usage.output_tokens == whole.usage.output_tokens


async def test_a_tool_loop_with_a_picture_in_the_result() -> None:
    one = serving(CALL, "It is sunny.")
    async with one.listening() as address, sdk(address) as client:
        messages: list[Any] = [{"role": "user", "content": "Weather in Oslo?"}]
        first = await client.messages.create(
            model=MODEL, max_tokens=200, messages=messages, tools=[WEATHER]
        )
        (call,) = first.content
        result = [{"type": "text", "text": "See:"}, IMAGE]
        messages += [
            {"role": "assistant", "content": first.content},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": call.id, "content": result},
                    {"type": "text", "text": "Well?"},
                ],
            },
        ]
        second = await client.messages.create(
            model=MODEL, max_tokens=200, messages=messages, tools=[WEATHER]
        )
    assert second.content[0].text == "It is sunny."
    prompt = prompt_of(one)
    places = [
        prompt.index(text) for text in ("get_weather\n<arg_key>", "See:", "<|image|>", "Well?")
    ]
    assert places == sorted(places)
    assert "<|observation|>" in prompt


async def test_an_answer_that_was_begun_goes_on() -> None:
    one = serving("B)")
    messages = [*HELLO, {"role": "assistant", "content": "The answer is ("}]
    answer = (await post(one, messages=messages)).json()
    assert answer["content"] == [{"type": "text", "text": "B)", "citations": None}]
    assert prompt_of(one).endswith("The answer is (")


@pytest.mark.parametrize(
    ("thinking", "begins"),
    [({"type": "disabled"}, True), ({"type": "enabled"}, False), ({"type": "adaptive"}, False)],
)
async def test_thinking_is_turned_on_and_off(thinking: Any, begins: bool) -> None:
    one = serving("hm")
    await post(one, thinking=thinking)
    assert prompt_of(one).rstrip().endswith("<think></think>") is begins


async def test_an_answer_can_be_held_to_a_schema() -> None:
    one = serving("{}")
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    config = {"effort": "low", "format": {"type": "json_schema", "schema": schema}}
    assert (await post(one, output_config=config)).status == 200
    assert one.engine.submits[0].sampling.grammar is not None


async def test_thoughts_are_left_out_where_they_are_not_wanted() -> None:
    thinking = {"type": "adaptive", "display": "omitted"}
    answer = (await post(serving("<think>hm</think>yes"), thinking=thinking)).json()
    assert [block["type"] for block in answer["content"]] == ["text"]
    reply = await post(serving("<think>hm</think>yes"), thinking=thinking, stream=True)
    assert [event["index"] for event in events(reply) if "index" in event] == [0] * 4


async def test_thoughts_that_come_back_are_in_the_prompt() -> None:
    one = serving("ok")
    blocks = [
        {"type": "thinking", "thinking": "so", "signature": "x"},
        {"type": "redacted_thinking", "data": "y"},
        {"type": "text", "text": "yes"},
        {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"city": "Oslo"}},
    ]
    result = [{"type": "tool_result", "tool_use_id": "a", "content": "gone", "is_error": True}]
    messages = [
        *HELLO,
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": result},
    ]
    reply = await post(one, messages=messages, tools=[WEATHER])
    assert reply.status == 200
    assert "so" in prompt_of(one)
    assert "Error: gone" in prompt_of(one)


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("one STOP", {"stop_sequences": ["STOP"]}, ("stop_sequence", "STOP")),
        ("one", {}, ("end_turn", None)),
        ("word " * 100, {"max_tokens": 5}, ("max_tokens", None)),
        ("word " * 900, {"max_tokens": 10**6}, ("model_context_window_exceeded", None)),
        (CALL, {"tools": [WEATHER], "max_tokens": 200}, ("tool_use", None)),
    ],
)
async def test_the_reason_of_the_end(text: str, fields: Any, expected: Any) -> None:
    whole = (await post(serving(text), **fields)).json()
    assert (whole["stop_reason"], whole["stop_sequence"]) == expected
    last = events(await post(serving(text), stream=True, **fields))[-2]
    assert last["type"] == "message_delta"
    assert (last["delta"]["stop_reason"], last["delta"]["stop_sequence"]) == expected
    assert last["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


async def test_a_stream_event_by_event() -> None:
    one = serving("<think>hm</think>yes")
    one.engine.tokens_per_step = 1000
    data = events(await post(one, stream=True))
    assert [event["type"] for event in data] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert data[0]["message"]["content"] == []
    assert data[0]["message"]["usage"]["output_tokens"] == 0
    assert data[2]["delta"] == {"type": "thinking_delta", "thinking": "hm"}
    assert data[3]["delta"]["type"] == "signature_delta"
    assert data[6] == {
        "type": "content_block_delta",
        "index": 1,
        "delta": {"type": "text_delta", "text": "yes"},
    }
    for event in data:
        msgspec.convert(event, MessagesEvent)


def folded(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content that a client makes of a stream."""
    blocks: list[dict[str, Any]] = []
    for event in data:
        if event["type"] == "content_block_start":
            blocks.append({**event["content_block"], "json": ""})
        elif event["type"] == "content_block_delta":
            (kind, *_), delta = event["delta"]["type"].split("_"), event["delta"]
            if kind == "input":
                blocks[event["index"]]["json"] += delta["partial_json"]
            elif kind == "signature":
                blocks[event["index"]]["signature"] = delta["signature"]
            else:
                blocks[event["index"]][kind] += delta[kind]
    for block in blocks:
        written = block.pop("json")
        if block["type"] == "tool_use":
            try:
                block["input"] = json.loads(written)
            except json.JSONDecodeError:
                block["input"] = {}  # cut by max_tokens
    return blocks


PIECES = ["<think>a b</think>", "text", " ", "\n", CALL, "<tool_call>nobody\n</tool_call>", "é😀"]


@settings(max_examples=30)
@given(st.lists(st.sampled_from(PIECES), max_size=6), st.integers(1, 7))
async def test_a_stream_folds_to_the_whole_answer(pieces: list[str], step: int) -> None:
    text = "".join(pieces)
    replies = []
    for stream in (False, True):
        one = serving(text)
        one.engine.tokens_per_step = step
        replies.append(await post(one, stream=stream, tools=[WEATHER], max_tokens=400))
    whole = replies[0].json()
    msgspec.convert(whole, MessagesAnswer)
    assert folded(events(replies[1])) == whole["content"]


async def test_tokens_are_counted_without_generating() -> None:
    one = serving("x")
    fields: dict[str, Any] = {
        "system": "Be short",
        "tools": [WEATHER],
        "messages": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "What?"}]}],
    }
    async with one.listening() as address, sdk(address) as client:
        count = await client.messages.count_tokens(model=MODEL, **fields)
        answer = await client.messages.create(model=MODEL, max_tokens=5, **fields)
    usage = answer.usage
    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    assert len(one.engine.submits) == 1


async def test_the_official_client_raises_its_own_classes() -> None:
    one = Serving(api_keys=("other",))
    async with one.listening() as address, sdk(address) as client:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            await client.messages.create(model=MODEL, max_tokens=5, messages=HELLO)
    assert refused.value.body["error"]["type"] == "authentication_error"
    one = serving("x")
    async with one.listening() as address, sdk(address) as client:
        ask = client.messages.create
        with pytest.raises(anthropic.NotFoundError):
            await ask(model="other", max_tokens=5, messages=HELLO)
        with pytest.raises(anthropic.BadRequestError) as bad:
            await ask(
                model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "a " * 2000}]
            )
        assert bad.value.body["type"] == "error"
        assert bad.value.body["error"]["type"] == "invalid_request_error"
        assert "tokens" in bad.value.body["error"]["message"]
        with pytest.raises(anthropic.NotFoundError):
            await client.post("/v1/messages/none", cast_to=object)
        one.engine.die()
        with pytest.raises(anthropic.APIStatusError) as gone:
            await ask(model=MODEL, max_tokens=5, messages=HELLO)
        assert gone.value.status_code == 503
        assert gone.value.body["error"]["type"] == "overloaded_error"


async def test_a_stream_that_fails_ends_with_an_error_event() -> None:
    one = serving("word " * 50)
    body = json.dumps({"max_tokens": 90, "messages": HELLO, "stream": True}).encode()
    asking = asyncio.create_task(one.call("POST", "/v1/messages", body=body))
    while not one.engine.submits:
        await asyncio.sleep(0)
    one.engine.step()
    await asyncio.sleep(0)
    one.engine.fail(next(iter(one.engine.running)), "step_failed", "it failed")
    data = events(await asking)
    assert data[0]["type"] == "message_start"
    assert data[-1]["error"]["type"] == "api_error"
    assert "it failed" in data[-1]["error"]["message"]
    assert "message_stop" not in [event["type"] for event in data]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": ...}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages"),
        ({"system": [{"text": "no type"}]}, "system"),
        ({"system": [{"type": "image", "source": {"type": "url", "url": "u"}}]}, "system[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*HELLO, {"role": "assistant", "content": ""}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
            "messages[0].content[0]",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "a"},
                            {"type": "image", "source": {"type": "file", "file_id": "f"}},
                        ],
                    }
                ]
            },
            "messages[0].content[1].source",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        (
            {"tools": [{**WEATHER, "input_schema": {"type": "string"}}]},
            "tools[0].input_schema.type",
        ),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "other"}},
            "tool_choice.name",
        ),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"temperature": -1}, "temperature"),
        (
            {"output_format": {"type": "json_schema", "schema": {"type": "wild"}}},
            "output_format.schema.type",
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "wild"}}}},
            "output_config.format.schema.type",
        ),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
    ],
)
async def test_what_cannot_be_answered_names_the_field_that_was_sent(
    fields: Any, named: str
) -> None:
    one = serving("x")
    reply = await post(one, **fields)
    assert reply.status == 400
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert body["type"] == "error"
    assert body["request_id"] == reply.headers["request-id"]
    assert named in body["error"]["message"]
    assert not one.engine.submits
    assert one.client.num_preparing == 0


async def test_a_medium_that_fails_is_named_where_it_stood() -> None:
    one = serving("x")

    async def prepare(source: Any) -> Any:
        raise BadMedia(f"{source.param}: it is broken", param=source.param)

    one.media.prepare = prepare  # type: ignore[method-assign]
    result = {"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]}
    call = {"type": "tool_use", "id": "a", "name": "get_weather", "input": {}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    reply = await post(one, messages=messages, tools=[WEATHER], system="s")
    assert reply.status == 400
    message = reply.json()["error"]["message"]
    assert message == "messages[2].content[0].content[0].source: it is broken"


async def test_fields_that_do_nothing_are_named_and_labels_are_not() -> None:
    block = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}, "color": 1}
    fields: dict[str, Any] = {
        "messages": [{"role": "user", "content": [block]}],
        "metadata": {"user_id": "u"},
        "speed": "fast",
        "output_config": {"effort": "low"},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "frobnicate": 1,
    }
    one = serving("x")
    reply = await post(one, **fields)
    assert reply.headers["x-glimt-ignored-fields"].split(",") == [
        "frobnicate",
        "messages[].content[].color",
        "speed",
        "output_config.effort",  # the template does not read it
    ]
    thinking = one.engine.submits[0].sampling.thinking
    assert thinking is not None
    assert thinking.max_tokens == 2000
    reply = await post(Serving(spoken("x"), tools=TOOLS), **fields)
    assert "thinking.budget_tokens" in reply.headers["x-glimt-ignored-fields"].split(",")


async def test_every_failure_of_the_route_has_anthropics_shape() -> None:
    one = Serving(api_keys=("k",))
    for method, status in (("GET", 401), ("POST", 401)):
        reply = await one.ask(method, "/v1/messages", body=b"{}")
        assert (reply.status, reply.json()["type"]) == (status, "error")
    for method, body, status in (("GET", b"", 405), ("POST", b"{", 400), ("POST", b"[]", 400)):
        reply = await Serving().ask(method, "/v1/messages", body=body)
        assert (reply.status, reply.json()["type"]) == (status, "error")
    reply = await Serving().ask("GET", "/v1/messages/batches")
    assert (reply.status, reply.json()["error"]["type"]) == (404, "not_found_error")
    full = Serving(max_waiting=0)
    with full.client.preparing(INFO.max_num_seqs):
        reply = await post(full)
    assert (reply.status, reply.json()["error"]["type"]) == (429, "rate_limit_error")
    assert reply.headers["retry-after"].isdigit()
