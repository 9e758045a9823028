"""/v1/responses as OpenAI's official client uses it, and what it must say of itself."""

import asyncio
import json
from typing import Any

import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.api.responses_schema import ResponseObject, ResponsesEvent
from glimt.api.tools import ToolSettings
from glimt.errors import BadMedia
from tests.support.http_half import MODEL, Reply, Serving, spoken
from tests.support.prompts import tokenizer

openai = pytest.importorskip("openai")

IMAGE = {"type": "input_image", "image_url": "data:a"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>"
BOTH = f"<think>hm</think>I look.\n{CALL}\n{CALL}"
TOOLS = ToolSettings.of(tokenizer(), "glm45", auto=True)


def serving(*texts: str, **state: Any) -> Serving:
    return Serving(*map(spoken, texts), tools=TOOLS, parse_reasoning=True, **state)


def sdk(address: str) -> Any:
    return openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


async def post(serving: Serving, **fields: Any) -> Reply:
    request = {"model": MODEL, "input": "hi", **fields}
    body = json.dumps({k: v for k, v in request.items() if v is not ...}).encode()
    return await serving.ask("POST", "/v1/responses", body=body)


def events(reply: Reply) -> list[dict[str, Any]]:
    """The data of a stream's events, numbered, each named like its type."""
    *whole, rest = reply.body.decode().split("\n\n")
    assert rest == ""
    data = []
    for number, event in enumerate(whole):
        name, line = event.split("\n")
        data.append(json.loads(line.removeprefix("data: ")))
        assert name == f"event: {data[-1]['type']}"
        assert data[-1]["sequence_number"] == number
        msgspec.convert(data[-1], ResponsesEvent)
    return data


def prompt_of(serving: Serving) -> str:
    ids = np.frombuffer(serving.engine.submits[-1].token_ids, np.int32)
    return tokenizer().decode(ids.tolist())


async def test_the_official_client_gets_thoughts_text_and_usage() -> None:
    one = serving("<think>hm</think>A cat 😀")
    async with one.listening() as address, sdk(address) as client:
        answer = await client.responses.create(
            model=MODEL,
            instructions="Be short.",
            input=[{"role": "user", "content": [IMAGE, {"type": "input_text", "text": "What?"}]}],
            max_output_tokens=50,
            store=False,
            metadata={"a": "b"},
        )
    assert answer.output_text == "A cat 😀"
    reasoning, message = answer.output
    assert (reasoning.type, reasoning.content[0].text) == ("reasoning", "hm")
    assert (message.role, message.status) == ("assistant", "completed")
    assert (answer.status, answer.object, answer.store) == ("completed", "response", False)
    assert answer.usage.output_tokens == len(one.answers[0])
    assert answer.usage.input_tokens == len(one.engine.submits[0].token_ids) // 4
    assert answer.usage.output_tokens_details.reasoning_tokens > 0
    assert answer.metadata == {"a": "b"}
    assert "Be short." in prompt_of(one)


async def test_the_official_client_streams_text_thoughts_and_calls() -> None:
    one = serving(BOTH)
    ask: dict[str, Any] = {"model": MODEL, "input": "hi", "tools": [WEATHER]}
    async with one.listening() as address, sdk(address) as client:
        whole = await client.responses.create(**ask)
        async with client.responses.stream(**ask) as stream:
            seen = [event async for event in stream]
            final = await stream.get_final_response()
    assert [item.type for item in final.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    deltas = [event.delta for event in seen if event.type == "response.output_text.delta"]
    assert "".join(deltas) == final.output_text == whole.output_text == "I look."
    assert final.output[2].arguments == whole.output[2].arguments == '{"city": "Oslo"}'
    assert final.usage == whole.usage


async def test_an_agent_loop_of_the_official_client() -> None:
    one = serving(f"<think>so</think>{CALL}", "It is sunny.")
    async with one.listening() as address, sdk(address) as client:
        items: list[Any] = [{"role": "user", "content": "Weather in Oslo?"}]
        first = await client.responses.create(model=MODEL, input=items, tools=[WEATHER])
        items += first.output
        (call,) = [item for item in first.output if item.type == "function_call"]
        assert json.loads(call.arguments) == {"city": "Oslo"}
        output = [{"type": "input_text", "text": "See:"}, IMAGE]
        items.append({"type": "function_call_output", "call_id": call.call_id, "output": output})
        second = await client.responses.create(model=MODEL, input=items, tools=[WEATHER])
    assert second.output_text == "It is sunny."
    prompt = prompt_of(one)
    shown = ("so", "get_weather\n<arg_key>", "<|observation|>", "See:", "<|image|>")
    places = [prompt.rindex(text) for text in shown]
    assert places == sorted(places)
    assert prompt.count("<|assistant|>") == 2  # thoughts and call are one turn


class City(pydantic.BaseModel):
    name: str


async def test_the_official_client_parses_an_answer_into_its_model() -> None:
    one = serving('<think>hm</think>{"name": "Oslo"}')
    async with one.listening() as address, sdk(address) as client:
        answer = await client.responses.parse(model=MODEL, input="Where?", text_format=City)
    assert answer.output_parsed == City(name="Oslo")
    assert one.engine.submits[0].sampling.grammar is not None
    assert (await post(one, text={"format": {"type": "json_object"}})).status == 200
    assert one.engine.submits[1].sampling.grammar is not None
    assert (await post(one, text={"format": {"type": "text"}})).status == 200
    assert one.engine.submits[2].sampling.grammar is None


async def test_logprobs_come_when_they_are_asked_for() -> None:
    one = serving("<think>hm</think>yes")
    for fields in ({"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}):
        whole = (await post(one, **fields)).json()
        (content,) = whole["output"][1]["content"]
        assert [each["token"] for each in content["logprobs"]] == [
            tokenizer().token_text(i) for i in tokenizer().encode_text("yes")
        ]
        assert len(content["logprobs"][0]["top_logprobs"]) == fields.get("top_logprobs", 0)
    data = events(await post(one, top_logprobs=1, stream=True))
    told = [each["logprobs"] for each in data if each["type"] == "response.output_text.delta"]
    (done,) = [each for each in data if each["type"] == "response.output_text.done"]
    assert [each for some in told for each in some] == done["logprobs"]


async def test_an_answer_that_is_cut_is_incomplete() -> None:
    whole = (await post(serving("word " * 100), max_output_tokens=5)).json()
    assert (whole["status"], whole["output"][0]["status"]) == ("incomplete", "incomplete")
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    data = events(await post(serving("word " * 100), max_output_tokens=5, stream=True))
    assert data[-1]["type"] == "response.incomplete"
    assert data[-2]["item"]["status"] == "incomplete"
    assert data[-1]["response"]["output"][0]["content"] == whole["output"][0]["content"]


async def test_a_stream_event_by_event() -> None:
    one = serving("<think>hm</think>yes")
    one.engine.tokens_per_step = 1000
    data = events(await post(one, stream=True))
    assert [event["type"].removeprefix("response.") for event in data] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert data[0]["response"]["status"] == "in_progress"
    assert {event["item_id"] for event in data if "item_id" in event} == {
        data[2]["item"]["id"],
        data[8]["item"]["id"],
    }


PIECES = ["<think>a b</think>", "text", " ", "\n", CALL, "<tool_call>nobody\n</tool_call>", "é😀"]


@settings(max_examples=30)
@given(st.lists(st.sampled_from(PIECES), max_size=6), st.integers(1, 7))
async def test_a_stream_ends_with_the_whole_answer(pieces: list[str], step: int) -> None:
    text = "".join(pieces)
    replies = []
    for stream in (False, True):
        one = serving(text)
        one.engine.tokens_per_step = step
        replies.append(await post(one, stream=stream, tools=[WEATHER]))
    whole, data = replies[0].json(), events(replies[1])
    msgspec.convert(whole, ResponseObject)
    assert data[-1]["response"] == whole
    texts: dict[int, str] = {}
    for event in data:
        if event["type"].endswith(".delta"):
            index = event["output_index"]
            texts[index] = texts.get(index, "") + event["delta"]
    for index, item in enumerate(whole["output"]):
        said = item["arguments"] if "arguments" in item else item["content"][0]["text"]
        assert texts[index] == said


async def test_a_stream_that_fails_ends_with_what_there_was() -> None:
    one = serving("word " * 50)
    body = json.dumps({"input": "hi", "stream": True}).encode()
    asking = asyncio.create_task(one.call("POST", "/v1/responses", body=body))
    while not one.engine.submits:
        await asyncio.sleep(0)
    one.engine.step()
    await asyncio.sleep(0)
    one.engine.fail(next(iter(one.engine.running)), "step_failed", "it failed")
    last = events(await asking)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "step_failed"
    assert last["response"]["output"][0]["status"] == "incomplete"


async def test_items_of_one_answer_are_one_turn_and_of_two_are_two() -> None:
    one = serving("ok")
    items = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "first"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
        {"role": "developer", "content": [{"type": "input_text", "text": "d"}]},
        {"role": "user", "content": [{"type": "refusal", "refusal": "e"}]},
    ]
    assert (await post(one, input=items)).status == 200
    prompt = prompt_of(one)
    assert prompt.count("<|assistant|>") == 3
    assert prompt.count("<|system|>") == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ...}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "message", "content": "x"}]}, "input[0].role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0]",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"role": "assistant", "content": [IMAGE]}]}, "input[0]"),
        (
            {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
            "input[0].call_id",
        ),
        (
            {
                "input": [
                    {"role": "user", "content": "a"},
                    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "["},
                ]
            },
            "input[1].arguments",
        ),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        (
            {"tools": [{**WEATHER, "parameters": {"type": "string"}}]},
            "tools[0].parameters.type",
        ),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "other"}},
            "tool_choice.name",
        ),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"type": "wild"}}}},
            "text.format.schema.type",
        ),
    ],
)
async def test_what_cannot_be_answered_names_the_field_that_was_sent(
    fields: Any, param: str
) -> None:
    one = serving("x")
    reply = await post(one, **fields)
    assert (reply.status, reply.error["param"]) == (400, param), reply.body
    assert not one.engine.submits
    assert one.client.num_preparing == 0


async def test_a_medium_that_fails_is_named_where_it_stood() -> None:
    one = serving("x")

    async def prepare(source: Any) -> Any:
        raise BadMedia("it is broken", param=source.param)

    one.media.prepare = prepare  # type: ignore[method-assign]
    items = [
        {"role": "user", "content": "a"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [IMAGE]},
    ]
    reply = await post(one, input=items, instructions="s")
    assert (reply.status, reply.error["param"]) == (400, "input[2].output[0].image_url")


async def test_fields_that_do_nothing_are_named() -> None:
    text = {"type": "input_text", "text": "hi", "color": 1}
    reply = await post(
        serving("x"),
        input=[{"role": "user", "content": [text], "id": "msg_1", "status": "completed"}],
        wild=1,
        text={"verbosity": "low"},
        reasoning={"effort": "low", "summary": "auto"},
        include=["reasoning.encrypted_content"],
    )
    assert reply.headers["x-glimt-ignored-fields"].split(",") == [
        "input[].content[].color",
        "wild",
        "text.verbosity",
        "include.reasoning.encrypted_content",
        "reasoning.effort",
    ]
    assert reply.json()["id"] == f"resp_{reply.headers['x-request-id']}"
    assert reply.json()["output"][0]["id"] == f"msg_{reply.headers['x-request-id']}_0"


def test_the_answer_is_what_the_official_types_allow() -> None:
    reply = asyncio.run(post(serving(BOTH), tools=[{**WEATHER, "strict": False}]))
    pydantic.TypeAdapter(openai.types.responses.Response).validate_python(reply.json())
