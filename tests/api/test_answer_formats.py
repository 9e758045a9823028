"""What an answer must look like: every way to say so, and every way to say it wrong."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest

from glimt.frontend.grammars import MAX_COMPILING, GrammarChecker
from glimt.wire import Grammar
from tests.support.grammars import tiny_compiler, tiny_language
from tests.support.http_half import Reply, Serving, chat_body

CONTROL = tiny_language()[0].control_tokens
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def takes(grammar: Grammar, answer: str) -> bool:
    """Whether the grammar that the engine is sent lets an answer through."""
    matcher = tiny_compiler().start(grammar.text).result().copy()
    for token_id in tiny_language()[0].encode_text(answer):
        if not matcher.accepts(token_id):
            return False
        matcher.accept(token_id)
    return matcher.is_accepting


async def submitted(serving: Serving | None = None, **fields: Any) -> Grammar:
    """The grammar of a chat request with these fields, as it reaches the engine."""
    serving = serving or Serving()
    reply = await serving.chat(**fields)
    assert reply.status == 200, reply.body
    grammar = serving.engine.submits[-1].sampling.grammar
    assert grammar is not None
    return grammar


def schema_format(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **fields}}


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"response_format": {"type": "json_object"}}, '{"x": 1}', "[]"),
        ({"response_format": schema_format(SCHEMA, strict=True)}, '{"a": 1}', "{}"),
        ({"response_format": schema_format(SCHEMA)}, '{"a": 1}', '{"a": "1"}'),
        ({"response_format": schema_format(True)}, "[1]", "x"),
        ({"structured_outputs": {"json": SCHEMA}}, '{"a": 1}', "{}"),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, '{"a": 1}', "{}"),
        ({"structured_outputs": {"json_object": True}}, "{}", "1"),
        ({"structured_outputs": {"regex": "[0-9]+"}}, "12", "x"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "no", "maybe"),
        ({"structured_outputs": {"grammar": 'start: "x"+'}}, "xx", "y"),
        ({"structured_outputs": {"regex": "x", "json_object": False}}, "x", "{}"),
        ({"structured_outputs": {"grammar": 'root ::= a "!"\na ::= [x-z]+'}}, "xz!", "x"),
        ({"guided_grammar": 'root ::= "x" | "y" root'}, "yyx", "y"),
        ({"guided_json": SCHEMA}, '{"a": 1}', "{}"),
        ({"guided_regex": "[0-9]+"}, "12", "x"),
        ({"guided_choice": ["yes", "no"]}, "no", "maybe"),
        ({"guided_grammar": 'start: "x"+'}, "xx", "y"),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
            '{"a":1}',
            '{"a": 1}',
        ),
        (
            {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " {2}"}},
            '{  "a"  :  1  }',
            '{"a": 1}',
        ),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_additional_properties": True}},
            '{"a": 1}',
            '{"a": 1, "b": 2}',
        ),
    ],
)
async def test_each_way_to_ask_reaches_the_engine_as_a_grammar(
    fields: dict[str, Any], good: str, bad: str
) -> None:
    grammar = await submitted(**fields)
    assert takes(grammar, good)
    assert not takes(grammar, bad)
    assert not grammar.allows_control


@pytest.mark.parametrize(
    "fields",
    [{}, {"response_format": None}, {"response_format": {"type": "text"}}, {"guided_json": None}],
)
async def test_who_asks_for_nothing_is_under_no_grammar(fields: dict[str, Any]) -> None:
    serving = Serving()
    assert (await serving.chat(**fields)).status == 200
    assert serving.engine.submits[0].sampling.grammar is None


RF, SO = "response_format", "structured_outputs"
BAD: list[tuple[dict[str, Any], str]] = [
    ({RF: {"type": "xml"}}, f"{RF}.type"),
    ({RF: {}}, f"{RF}.type"),
    ({RF: "json_object"}, RF),
    ({RF: {"type": "json_schema"}}, f"{RF}.json_schema"),
    ({RF: {"type": "json_schema", "json_schema": {"name": "x"}}}, f"{RF}.json_schema.schema"),
    ({RF: {"type": "json_object", "json_schema": {"schema": {}}}}, f"{RF}.json_schema"),
    ({RF: {"type": "structural_tag"}}, f"{RF}.type"),
    ({RF: schema_format("x")}, f"{RF}.json_schema.schema"),
    ({RF: schema_format(5)}, f"{RF}.json_schema.schema"),
    ({RF: schema_format(False)}, f"{RF}.json_schema.schema"),
    ({RF: schema_format({"type": "objekt"})}, f"{RF}.json_schema.schema.type"),
    ({RF: schema_format({"type": 5})}, f"{RF}.json_schema.schema"),
    (
        {RF: schema_format({"properties": {"a": {"items": {"uniqueItems": True}}}})},
        f"{RF}.json_schema.schema.properties.a.items.uniqueItems",
    ),
    ({RF: schema_format({"$ref": "http://x/"})}, f"{RF}.json_schema.schema.$ref"),
    ({RF: schema_format({"$ref": "#"})}, f"{RF}.json_schema.schema"),
    ({RF: schema_format({"enum": ["x" * 2**19]})}, f"{RF}.json_schema.schema"),
    ({SO: {}}, SO),
    ({SO: {"json_object": False}}, SO),
    ({SO: {"json": SCHEMA, "regex": "x"}}, f"{SO}.regex"),
    ({SO: {"choice": ["a"], "json_object": True}}, f"{SO}.json_object"),
    ({SO: {"structural_tag": {}}}, f"{SO}.structural_tag"),
    ({SO: {"json": "{"}}, f"{SO}.json"),
    ({SO: {"json": "[]"}}, f"{SO}.json"),
    ({SO: {"regex": ""}}, f"{SO}.regex"),
    ({SO: {"regex": 5}}, f"{SO}.regex"),
    ({SO: {"regex": "["}}, f"{SO}.regex"),
    ({SO: {"regex": "a\\"}}, f"{SO}.regex"),
    ({SO: {"regex": "a\0"}}, f"{SO}.regex"),
    ({SO: {"regex": "x" * 2**20}}, f"{SO}.regex"),
    ({SO: {"choice": []}}, f"{SO}.choice"),
    ({SO: {"choice": [1]}}, f"{SO}.choice[0]"),
    ({SO: {"choice": ["a\0"]}}, f"{SO}.choice"),
    ({SO: {"choice": ["x" * 2**19]}}, f"{SO}.choice"),
    ({SO: {"grammar": "root"}}, f"{SO}.grammar"),
    ({SO: {"grammar": "start: a"}}, f"{SO}.grammar"),
    ({SO: {"grammar": 'start: %json {"not": {}}'}}, f"{SO}.grammar"),
    ({SO: {"grammar": "start: <|nobody|>"}}, f"{SO}.grammar"),
    ({SO: {"grammar": "root ::= <|user|>"}}, f"{SO}.grammar"),
    ({SO: {"grammar": "root ::= nothing"}}, f"{SO}.grammar"),
    ({SO: {"grammar": "root ::= " + "(" * 9000}}, f"{SO}.grammar"),
    ({"guided_grammar": 'branch ::= "x"'}, "guided_grammar"),
    ({SO: {"regex": "x", "whitespace_pattern": " "}}, f"{SO}.whitespace_pattern"),
    ({SO: {"choice": ["x"], "disable_any_whitespace": True}}, f"{SO}.disable_any_whitespace"),
    (
        {SO: {"json": {}, "whitespace_pattern": " ", "disable_any_whitespace": True}},
        f"{SO}.whitespace_pattern",
    ),
    ({SO: {"json": {}, "whitespace_pattern": "("}}, f"{SO}.json"),
    ({"guided_regex": "("}, "guided_regex"),
    ({"guided_json": {"not": {}}}, "guided_json.not"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_grammar": "start: ("}, "guided_grammar"),
    ({RF: {"type": "json_object"}, SO: {"regex": "x"}}, SO),
    ({RF: {"type": "json_object"}, "guided_json": SCHEMA}, "guided_json"),
    ({"guided_choice": ["a"], "guided_grammar": 'start: "a"'}, "guided_grammar"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[param for _, param in BAD])
async def test_what_cannot_be_enforced_is_a_400_that_names_the_field(
    fields: dict[str, Any], param: str
) -> None:
    serving = Serving()
    reply = await serving.chat(**fields)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error"), reply.body
    assert reply.error["param"] == param
    assert reply.error["code"] in ("invalid_request", "unsupported", "invalid_grammar")
    assert len(reply.body) < 1000
    assert not serving.engine.submits
    assert serving.client.num_preparing == 0


async def test_a_completion_can_be_under_a_grammar_too() -> None:
    serving = Serving()
    fields = {"prompt": ["a", "b"], "structured_outputs": {"choice": ["x"]}}
    body = json.dumps({"model": "alias", **fields}).encode()
    reply = await serving.ask("POST", "/v1/completions", body=body)
    assert reply.status == 200, reply.body
    grammars = [submit.sampling.grammar for submit in serving.engine.submits]
    assert len(grammars) == 2
    assert all(grammar is not None and takes(grammar, "x") for grammar in grammars)


@pytest.mark.parametrize(
    ("parse", "kwargs", "channel"),
    [
        (False, {}, "content"),
        (True, {}, "undecided"),
        (True, {"enable_thinking": False}, "content"),
    ],
)
async def test_a_grammar_begins_after_the_thoughts(
    parse: bool, kwargs: dict[str, Any], channel: str
) -> None:
    serving = Serving(parse_reasoning=parse)
    grammar = await submitted(
        serving, response_format={"type": "json_object"}, chat_template_kwargs=kwargs
    )
    assert grammar.channel == channel
    if channel == "content":
        assert grammar.thoughts is None
        return
    assert grammar.thoughts is not None
    assert (grammar.thoughts.begin, grammar.thoughts.end) == (
        CONTROL["<think>"],
        CONTROL["</think>"],
    )
    assert grammar.thoughts.leave == (CONTROL["<tool_call>"],)


async def test_every_choice_is_under_the_grammar() -> None:
    serving = Serving()
    await submitted(serving, n=3, temperature=1, response_format={"type": "json_object"})
    assert len(serving.engine.submits) == 3
    assert len({submit.sampling.grammar for submit in serving.engine.submits}) == 1


class SlowPool(Executor):
    """Compiles when it is told to, in another thread."""

    def __init__(self) -> None:
        self.work: list[tuple[Future[Any], Any, tuple[Any, ...]]] = []
        self._threads = ThreadPoolExecutor(1)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.work.append((future, fn, args))
        return future

    def run(self) -> None:
        """Do all that waits."""
        for future, fn, args in self.work:
            future.set_result(self._threads.submit(fn, *args).result())
        self.work.clear()


def slow_serving(timeout_s: float = 5.0) -> tuple[Serving, SlowPool]:
    pool = SlowPool()
    compiler = tiny_compiler(pool)
    return Serving(grammars=GrammarChecker(compiler, timeout_s)), pool


async def ask(serving: Serving, **fields: Any) -> Reply:
    return await serving.call("POST", "/v1/chat/completions", body=chat_body(**fields))


async def test_others_go_on_while_a_grammar_is_compiled() -> None:
    serving, pool = slow_serving()
    waiting = asyncio.create_task(serving.chat(guided_choice=["x"]))
    await asyncio.sleep(0)
    assert (await serving.chat()).status == 200
    assert not waiting.done()
    pool.run()
    assert (await waiting).status == 200


async def test_a_grammar_that_does_not_get_compiled_is_refused_in_time() -> None:
    serving, pool = slow_serving(timeout_s=0.01)
    reply = await serving.chat(guided_choice=["x"])
    assert (reply.status, reply.error["param"]) == (400, "guided_choice")
    assert "0.01 s" in reply.error["message"]
    pool.run()  # it was no use to that request, but is to the next
    assert (await serving.chat(guided_choice=["x"])).status == 200


async def test_a_client_that_leaves_takes_no_grammar_from_others() -> None:
    serving, pool = slow_serving()
    leave = asyncio.Event()
    body = chat_body(guided_choice=["x"])
    gone = asyncio.create_task(serving.ask(body=body, leave=leave))
    stays = asyncio.create_task(serving.ask(body=body))
    await asyncio.sleep(0.01)
    leave.set()
    await asyncio.sleep(0.01)
    pool.run()
    assert (await stays).status == 200
    await gone
    assert len(serving.engine.submits) == 1
    assert serving.client.num_preparing == 0


async def test_too_many_grammars_at_once_are_too_many_requests() -> None:
    serving, pool = slow_serving()
    waiting = [
        asyncio.create_task(serving.chat(guided_choice=[str(number)]))
        for number in range(MAX_COMPILING)
    ]
    await asyncio.sleep(0.05)
    reply = await serving.chat(guided_choice=["one more"])
    assert reply.status == 429
    pool.run()
    replies = await asyncio.gather(*waiting)
    assert {each.status for each in replies} == {200}
