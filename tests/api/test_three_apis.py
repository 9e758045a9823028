"""The same tools, thoughts and forms through chat, responses and messages, whole and streamed.

Each case is asked six times by the official clients. What reaches the engine is the same each
time, and so is what the clients show.
"""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glimt.api.tools import ToolSettings
from glimt.errors import BadMedia
from glimt.wire import Submit
from tests.support.http_half import Serving, spoken
from tests.support.prompts import tokenizer
from tests.support.three_apis import APIS, Clients, Question, Seen

WAYS = [(api, stream) for api in APIS for stream in (False, True)]
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "units": {"enum": ["C", "F", None]},
        "places": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["city"],
}
EMPTY: dict[str, Any] = {"type": "object", "properties": {}}
TOOLS = {"weather": WEATHER, "clock": EMPTY}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


def call(name: str, **values: str) -> str:
    arguments = [
        f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n"
        for key, value in values.items()
    ]
    return f"<tool_call>{name}\n{''.join(arguments)}</tool_call>"


OSLO = call("weather", city="Oslo", days="2")
IS_OSLO = ("weather", {"city": "Oslo", "days": 2})
HARD = '<arg_value>"a"\n</arg_key> {"b": [1]} </tool_calls> <arg_key> \\n é 😀 '
BROKEN = "<arg_key>city</arg_key>oops</tool_call>"


def serving(*texts: str, **state: Any) -> Serving:
    tools = ToolSettings.of(tokenizer(), "glm45", auto=True)
    return Serving(*map(spoken, texts), **{"tools": tools, "parse_reasoning": True, **state})


def prompt_of(submit: Submit) -> str:
    return tokenizer().decode(memoryview(submit.token_ids).cast("i").tolist())


def submitted(submit: Submit) -> tuple[Any, ...]:
    """What reaches the engine, but for a seed that is drawn afresh."""
    sampling = msgspec.structs.replace(submit.sampling, seed=0)
    return prompt_of(submit), len(submit.images), sampling, submit.priority


async def asked(text: str, question: Question) -> tuple[Seen, Submit]:
    """The answer that all six ways agree upon, and its request to the engine."""
    one = serving(text)
    seen: list[Seen] = []
    async with one.listening() as address, Clients(address) as clients:
        for way in WAYS:
            seen.append(await clients.ask(way[0], question, stream=way[1]))
            assert seen[-1].said == seen[0].said, way
            assert submitted(one.engine.submits[-1]) == submitted(one.engine.submits[0]), way
    return seen[0], one.engine.submits[0]


# What the model says, what is asked; thoughts, text, calls and end of the answer.
SAID: dict[str, tuple[str, Question, tuple[str, str, list[Any], str]]] = {
    "no thoughts": ("A cat 😀", Question(), ("", "A cat 😀", [], "stop")),
    "nothing": ("", Question(), ("", "", [], "stop")),
    "thoughts": ("<think>\nhm\n</think>\n\nYes ", Question(), ("hm", "Yes ", [], "stop")),
    "thoughts without end": ("<think>hm", Question(), ("hm", "", [], "stop")),
    "thoughts that are cut": (
        "<think>abcdefgh",
        Question(max_tokens=6),
        ("abcdef", "", [], "cut"),
    ),
    "text that is cut": (
        "<think>ab</think>cdefg",
        Question(max_tokens=6),
        ("ab", "cde", [], "cut"),
    ),
    "hidden thoughts": ("<think>a</think>b", Question(hidden=True), ("", "b", [], "stop")),
    "hidden thoughts before a call": (
        f"<think>a</think>b{OSLO}",
        Question(hidden=True, tools=TOOLS),
        ("", "b", [IS_OSLO], "calls"),
    ),
    "a call": (OSLO, Question(tools=TOOLS), ("", "", [IS_OSLO], "calls")),
    "text and calls": (
        f"<think>hm</think>I look.\n{OSLO}\n{call('clock')} after",
        Question(tools=TOOLS),
        ("hm", "I look.\n\n after", [IS_OSLO, ("clock", {})], "calls"),
    ),
    "a call in thoughts": (
        f"<think>hm{OSLO}",
        Question(tools=TOOLS),
        ("hm", "", [IS_OSLO], "calls"),
    ),
    "a call without its end": (
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo",
        Question(tools=TOOLS),
        ("", "", [("weather", {"city": "Oslo"})], "calls"),
    ),
    "an unknown function": (
        f"a {call('nope', a='1')} b",
        Question(tools=TOOLS),
        ("", f"a {call('nope', a='1')} b", [], "stop"),
    ),
    "a call of nothing": (
        "<tool_call></tool_call>",
        Question(tools=TOOLS),
        ("", "<tool_call></tool_call>", [], "stop"),
    ),
    "a call that breaks off": (
        f"a <tool_call>weather\n{BROKEN} b",
        Question(tools=TOOLS),
        ("", f"a {BROKEN} b", [("weather", {})], "calls"),
    ),
    "a call that breaks off after a value": (
        f"<tool_call>weather\n<arg_key>city</arg_key><arg_value>x</arg_value>{BROKEN}",
        Question(tools=TOOLS),
        ("", BROKEN, [("weather", {"city": "x"})], "calls"),
    ),
    "values full of marks": (
        call("weather", city=HARD),
        Question(tools=TOOLS),
        ("", "", [("weather", {"city": HARD})], "calls"),
    ),
    "values by their types": (
        call("weather", city="12", days="null", units="null", places='[{"a": 1}]'),
        Question(tools=TOOLS),
        (
            "",
            "",
            [("weather", {"city": "12", "days": None, "units": None, "places": [{"a": 1}]})],
            "calls",
        ),
    ),
    "one call of two": (
        OSLO + OSLO,
        Question(tools=TOOLS, choice="auto", parallel=False),
        ("", "", [IS_OSLO], "calls"),
    ),
    "a form after thoughts": (
        '<think>a</think>{"a": 1}',
        Question(schema=SCHEMA),
        ("a", '{"a": 1}', [], "stop"),
    ),
    "a form in place of calls": (
        '{"a": 1}',
        Question(schema=SCHEMA, tools=TOOLS),
        ("", '{"a": 1}', [], "stop"),
    ),
    "a call in place of a form": (
        OSLO,
        Question(schema=SCHEMA, tools=TOOLS),
        ("", "", [IS_OSLO], "calls"),
    ),
    "a stop string": ("one STOP two", Question(stop=["STOP"]), ("", "one ", [], "stop")),
    "a stop string in thoughts": (
        "<think>one STOP two</think>x",
        Question(stop=["STOP"]),
        ("one", "", [], "stop"),
    ),
    "a stop string in a call": (
        call("weather", city="STOP"),
        Question(stop=["STOP"], tools=TOOLS),
        ("", "", [("weather", {"city": "STOP"})], "calls"),
    ),
    "a picture": (
        "A cat",
        Question(image="data:a", system="Be short."),
        ("", "A cat", [], "stop"),
    ),
}


@pytest.mark.parametrize("name", SAID)
async def test_the_same_is_shown_by_all_clients(name: str) -> None:
    text, question, expected = SAID[name]
    seen, _ = await asked(text, question)
    assert (seen.reasoning, seen.text, seen.calls, seen.end) == expected


@pytest.mark.parametrize(
    ("question", "is_enforced"),
    [
        (Question(tools=TOOLS, choice="required"), True),
        (Question(tools=TOOLS, choice="required", parallel=False), True),
        (Question(tools=TOOLS, choice="weather"), True),
        (Question(tools={"weather": WEATHER}, strict=True), True),
        (Question(schema=SCHEMA), True),
        (Question(tools=TOOLS), True),
        (Question(tools=TOOLS, choice="none"), False),
        (Question(choice="none"), False),
        (Question(choice="auto", schema=SCHEMA), True),
    ],
)
async def test_the_same_is_enforced(question: Question, is_enforced: bool) -> None:
    seen, submit = await asked(OSLO if question.tools else "x", question)
    assert (submit.sampling.grammar is not None) == is_enforced
    may_call = question.tools and question.choice != "none"
    assert seen.end == ("calls" if may_call else "stop")
    assert bool(submit.sampling.bad_words) == bool(question.tools and not may_call)


async def test_thinking_is_switched_and_bounded_alike() -> None:
    _, submit = await asked("x", Question(thinking=False))
    assert prompt_of(submit).endswith("hi/nothink<|assistant|>\n<think></think>\n")
    _, submit = await asked("x", Question(thinking=True, budget=1024))
    assert submit.sampling.thinking is not None
    assert submit.sampling.thinking.max_tokens == 1024


async def test_an_agent_sends_back_what_it_got() -> None:
    """A call on what is seen, its result, the answer; the prompt is the same through all APIs."""
    tools = {"weather": {"properties": {"city": {"type": "string"}}}}
    question = Question(text="What is there?", image="data:a", tools=tools, max_tokens=60)
    called = call("weather", city="Oslo")
    boxed = "<|begin_of_box|>[[1,2,3,4]]<|end_of_box|>"
    result = "<tool_response>\n30 °C\n</tool_response>"
    # Nothing that was answered is unknown when it comes back.
    one = serving(strict_fields=True, boxes="structured")
    async with one.listening() as address, Clients(address) as clients:
        for number, (api, stream) in enumerate(WAYS):
            thinks = f"<think>hm</think>I look{boxed}.\n{called}\n{called}"
            one.answers[2 * number :] = [spoken(thinks), spoken("Sunny.")]
            first = await clients.ask(api, question, stream=stream)
            assert first.calls == [("weather", {"city": "Oslo"})] * 2
            again = msgspec.structs.replace(question, history=[first], result="30 °C")
            second = await clients.ask(api, again, stream=stream)
            assert (second.text, second.end) == ("Sunny.", "stop")
            submit = one.engine.submits[-1]
            assert prompt_of(submit).endswith(
                f"<think>hm</think>\nI look[[1,2,3,4]].\n{called}\n{called}<|observation|>"
                f"\n{result}\n{result}"
                "<|assistant|>\n"
            ), (api, stream)
            assert len(submit.images) == 1


def boxed_texts(parts: list[Any]) -> list[tuple[str, Any]]:
    return [(part["text"], part["boxes"]) for part in parts if part["type"].endswith("text")]


async def test_boxes_come_apart_in_all_apis_streamed_and_whole() -> None:
    box = "<|begin_of_box|>[[1,2,3,4]]<|end_of_box|>"
    one = serving(f"<think>hm</think>One {box}{call('clock')}two, {box}{box}", boxes="structured")
    boxes = [{"text": "[[1,2,3,4]]", "coordinates": [[1, 2, 3, 4]]}]
    expected = [("One [[1,2,3,4]]", boxes), ("two, [[1,2,3,4]][[1,2,3,4]]", boxes * 2)]
    async with one.listening() as address, Clients(address) as clients:
        for stream in (False, True):
            seen = await clients.ask("responses", Question(tools=TOOLS), stream=stream)
            parts = [part for item in seen.raw for part in item.get("content", [])]
            assert (
                boxed_texts([part for part in parts if part["type"] == "output_text"]) == expected
            )
        seen = await clients.ask("messages", Question(tools=TOOLS), stream=False)
        assert boxed_texts(seen.raw["content"]) == expected
        # A client of theirs lets a stream's boxes pass, which stand in the events.
        seen = await clients.ask("messages", Question(tools=TOOLS), stream=True)
        assert seen.text == "".join(text for text, _ in expected)
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 400}
    body = json.dumps({**fields, "stream": True}).encode()
    reply = await one.ask("POST", "/v1/messages", body=body)
    lines = [line for line in reply.body.decode().splitlines() if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [event["boxes"] for event in events if "boxes" in event] == [boxes * 3]


async def test_calls_that_are_cut_are_begun_and_end_as_cut() -> None:
    one = serving(OSLO)
    async with one.listening() as address, Clients(address) as clients:
        for api, stream in WAYS:
            seen = await clients.ask(api, Question(tools=TOOLS, max_tokens=12), stream=stream)
            assert ([name for name, _ in seen.calls], seen.end) == (["weather"], "cut")


PARTS = ["<think>", "</think>", "a", " b", "\n", "é", OSLO, "<tool_call>clock</tool_call>", BROKEN]
PARTS += ["<tool_call>", "</tool_call>", "<arg_key>city", "</arg_key>", "clock", "<arg_value>"]


async def whole(path: str, text: str, step: int) -> Any:
    """An answer to a small request with tools, of an engine that gives `step` tokens at once."""
    functions = [{"name": name, "parameters": schema} for name, schema in TOOLS.items()]
    said = [{"role": "user", "content": "hi"}]
    chat_tools = [{"type": "function", "function": each} for each in functions]
    their_tools = [{"name": f["name"], "input_schema": f["parameters"]} for f in functions]
    fields: dict[str, Any] = {
        "chat/completions": {"messages": said, "tools": chat_tools},
        "responses": {"input": "hi", "tools": [{"type": "function", **f} for f in functions]},
        "messages": {"messages": said, "max_tokens": 400, "tools": their_tools},
    }[path]
    one = serving(text)
    one.engine.tokens_per_step = step
    reply = await one.ask("POST", f"/v1/{path}", body=json.dumps(fields).encode())
    assert reply.status == 200
    return reply.json()


@given(st.lists(st.sampled_from(PARTS), max_size=7).map("".join), st.sampled_from([2, 3, 1000]))
@example(" b</think>", 1000)
@example(f"a{OSLO} b{OSLO}<think>c", 3)
@settings(max_examples=50)
async def test_nothing_differs_between_apis_nor_by_how_tokens_come(text: str, step: int) -> None:
    message = (await whole("chat/completions", text, step))["choices"][0]["message"]
    items = (await whole("responses", text, step))["output"]
    blocks = (await whole("messages", text, step))["content"]
    functions = [each["function"] for each in message.get("tool_calls", [])]
    calls = [(each["name"], each["arguments"]) for each in functions]
    # Each item and each block is a stretch of the answer, in the order in which they were said.
    said: list[tuple[Any, ...]] = []
    for item in items:
        if item["type"] == "function_call":
            said.append((item["name"], item["arguments"]))
        else:
            said.append((item["type"], "".join(part["text"] for part in item["content"])))
    assert [each for each in said if each[0] in TOOLS] == calls
    assert "".join(t for kind, t in said if kind == "message") == (message["content"] or "")
    assert "".join(t for kind, t in said if kind == "reasoning") == (message["reasoning"] or "")
    assert [
        {"text": "message", "thinking": "reasoning"}.get(block["type"], block.get("name"))
        for block in blocks
    ] == [kind for kind, _ in said]
    for block, (_, shown) in zip(blocks, said, strict=True):
        if block["type"] == "tool_use":
            assert block["input"] == json.loads(shown)
        else:
            assert block[block["type"]] == shown
    slowly = (await whole("responses", text, 1))["output"]
    for each in (*items, *slowly):
        each.pop("call_id", None)
        each["id"] = each["id"].rpartition("_")[2]
    assert items == slowly


# What is asked; code and field of the error, by API, where the names are not the same.
REFUSED: dict[str, tuple[Question, str, tuple[str, str, str]]] = {
    "a choice without tools": (
        Question(choice="required"),
        "invalid_request",
        ("tool_choice", "tool_choice", "tool_choice"),
    ),
    "a named choice without tools": (
        Question(choice="x"),
        "invalid_request",
        ("tool_choice", "tool_choice", "tool_choice"),
    ),
    "a choice that is no tool": (
        Question(choice="x", tools=TOOLS),
        "invalid_request",
        ("tool_choice.function.name", "tool_choice.name", "tool_choice.name"),
    ),
    "a prompt that is too long": (
        Question(text="word " * 900),
        "context_length_exceeded",
        ("messages", "input", "messages"),
    ),
    "a form that cannot be enforced": (
        Question(schema={"type": "object", "properties": {"a": {"if": {}}}}),
        "invalid_grammar",
        (
            "response_format.json_schema.schema.properties.a.if",
            "text.format.schema.properties.a.if",
            "output_config.format.schema.properties.a.if",
        ),
    ),
    "arguments of no type": (
        Question(tools={"a": {"properties": {"x": {"type": "strang"}}}}),
        "invalid_request",
        (
            "tools[0].function.parameters.properties.x.type",
            "tools[0].parameters.properties.x.type",
            "tools[0].input_schema.properties.x.type",
        ),
    ),
    "a strict pattern that is none": (
        Question(
            tools={"a": {"properties": {"x": {"type": "string", "pattern": "("}}}}, strict=True
        ),
        "invalid_grammar",
        (
            "tools[0].function.parameters.properties.x.pattern",
            "tools[0].parameters.properties.x.pattern",
            "tools[0].input_schema.properties.x.pattern",
        ),
    ),
    "a picture that is none": (
        Question(image="data:bad"),
        "image_parse_error",
        (
            "messages[0].content[0].image_url",
            "input[0].content[0].image_url",
            "messages[0].content[0].source",
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_the_same_is_refused_naming_the_field_that_was_sent(name: str) -> None:
    question, code, params = REFUSED[name]
    one = serving("x")
    place = "messages[0].content[0].image_url"
    one.media.failures["data:bad"] = BadMedia("no picture", param=place)
    async with one.listening() as address, Clients(address) as clients:
        for api, stream in WAYS:
            error = await clients.refusal(api, question, stream=stream)
            assert error.status_code == 400
            if api == "messages":
                assert error.body["error"]["type"] == "invalid_request_error"
                assert params[2] in error.body["error"]["message"]
            else:
                assert error.body["code"] == code
                assert error.body["param"] == params[APIS.index(api)]
                assert error.body["type"] == "invalid_request_error"
    assert one.client.num_open == one.client.num_preparing == 0
