"""Tool calls of a reply, whatever the model writes and however its tokens come."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glimt.frontend.argument_types import ArgumentTypes
from glimt.frontend.prompt import IntArray
from glimt.frontend.reasoning import ReasoningTokens
from glimt.frontend.reply import ReplyDelta, ReplyReader, fold
from glimt.frontend.tool_calls import CallRules, CallTokens
from tests.support.prompts import tokenizer, tokenizer_without

PROMPT = "[gMASK]<sop><|user|>\nq<|assistant|>\n"
OPENED, CLOSED = PROMPT + "<think>", PROMPT + "<think></think>\n"
SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "n": {"type": "integer"},
        "x": {"type": "number"},
        "on": {"type": "boolean"},
        "items": {"type": "array", "items": {"type": "string"}},
        "box": {"type": "object", "properties": {"w": {"type": "integer"}}},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"type": ["integer", "string"]},
        "word": {"enum": ["a", "b"]},
        "mixed": {"enum": [1, "one", None]},
        "there": {"$ref": "#/$defs/city"},
        "free": {},
    },
    "$defs": {"city": {"type": "string"}},
}
TOOLS = {"f": ArgumentTypes(SCHEMA), "get.time-2": ArgumentTypes(None)}


def ids(text: str) -> list[int]:
    return tokenizer().encode_template(text)


def prompt(text: str) -> IntArray:
    return np.array(ids(text), np.int32)


def reader(before: str = CLOSED, *, only_one: bool = False, **kwargs: Any) -> ReplyReader:
    tokens = CallTokens.of(tokenizer())
    assert tokens is not None
    numbers = itertools.count()
    rules = CallRules(
        tokens=tokens, tools=TOOLS, new_id=lambda: f"call_{next(numbers)}", only_one=only_one
    )
    return ReplyReader(
        tokenizer(),
        ReasoningTokens.of(tokenizer()),
        prompt(before),
        calls=rules,
        skip_ids=tokenizer().skip_ids,
        **kwargs,
    )


def deltas_of(
    reader: ReplyReader, token_ids: Sequence[int], cuts: Sequence[int], *, is_cut: bool = False
) -> list[ReplyDelta]:
    edges = [0, *sorted(min(cut, len(token_ids)) for cut in cuts), len(token_ids)]
    pushes = [reader.push(token_ids[begin:end]) for begin, end in itertools.pairwise(edges)]
    return [*pushes, reader.finish(is_cut=is_cut)]


def read(reply: str, before: str = CLOSED, **kwargs: Any) -> ReplyDelta:
    """The whole reply, its tokens pushed one by one."""
    is_cut = kwargs.pop("is_cut", False)
    token_ids = ids(reply)
    return fold(
        deltas_of(reader(before, **kwargs), token_ids, range(len(token_ids)), is_cut=is_cut)
    )


def calls_in(reply: ReplyDelta) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in reply.calls]


def call(name: str, *values: tuple[str, str], between: str = "\n") -> str:
    """A call as GLM-4.5 writes it; with `between` empty, as GLM-4.7 does."""
    pairs = "".join(
        f"<arg_key>{key}</arg_key>{between}<arg_value>{value}</arg_value>{between}"
        for key, value in values
    )
    return f"<tool_call>{name}{between}{pairs}</tool_call>"


@pytest.mark.parametrize("between", ["\n", "", "\\n", " \n\\n "])
def test_a_call_is_read_with_any_space_between_its_marks(between: str) -> None:
    reply = read(call("f", ("text", " Oslo\n"), ("n", "2"), between=between))
    assert calls_in(reply) == [("f", {"text": " Oslo\n", "n": 2})]
    assert (reply.content, reply.calls[0].id) == ("", "call_0")
    assert calls_in(read(call("get.time-2", between=between))) == [("get.time-2", {})]


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("text", "12", "12"),
        ("text", "null", "null"),
        ("text", '{"a": [1]}', '{"a": [1]}'),
        ("text", '"quoted"', '"quoted"'),
        ("text", "", ""),
        ("text", 'a "b" \\n\n\té😀', 'a "b" \\n\n\té😀'),
        ("text", "<b>bold</b> & <i>", "<b>bold</b> & <i>"),
        ("n", " 12\n", 12),
        ("n", "many", "many"),
        ("n", '"12"', 12),
        ("n", "5.0", 5.0),
        ("n", "123456789012345678901234567890", 123456789012345678901234567890),
        ("x", "1e3", 1000.0),
        ("x", "NaN", "NaN"),
        ("x", "1e999", float("inf")),  # digits as they were written
        ("x", "0.1234567890123456789", 0.1234567890123456789),
        ("x", "3", 3),
        ("on", "true", True),
        ("on", "True", True),
        ("on", "no", "no"),
        ("items", '["a", "b"]', ["a", "b"]),
        ("items", '["a", 1, true]', ["a", "1", "true"]),
        ("items", "a, b", "a, b"),
        ("box", '{"w": "3", "h": "4"}', {"w": 3, "h": "4"}),
        ("maybe", "null", None),
        ("maybe", "nullify", "nullify"),
        ("maybe", "nul", "nul"),
        ("maybe", "7", "7"),
        ("maybe", "", ""),
        ("either", "7", 7),
        ("either", "7.5", "7.5"),
        ("either", "seven", "seven"),
        ("either", '"7"', '"7"'),
        ("either", "None", "None"),
        ("word", "a", "a"),
        ("word", "12", "12"),
        ("mixed", "1", 1),
        ("mixed", "one", "one"),
        ("mixed", "null", None),
        ("mixed", "2.5", "2.5"),
        ("there", "12", "12"),
        ("free", "12", 12),
        ("free", '{"a": null}', {"a": None}),
        ("free", '"12"', "12"),
        ("free", "Oslo", "Oslo"),
        ("free", "[1,", "[1,"),
        ("free", '"\\ud800"', "\ud800"),
        ("unknown", "true", True),
        ("unknown", "[" * 5000, "[" * 5000),
    ],
)
def test_values_have_the_types_of_the_schema(key: str, written: str, value: Any) -> None:
    ((_, arguments),) = calls_in(read(call("f", (key, written))))
    assert arguments == {key: value}
    assert type(arguments[key]) is type(value)


@pytest.mark.parametrize(
    ("reply", "content", "calls"),
    [
        ("Let me see.\n" + call("f", ("n", "1")), "Let me see.", [("f", {"n": 1})]),
        ("\n" + call("f") + "\n" + call("f", ("n", "2")) + "\n", "", [("f", {}), ("f", {"n": 2})]),
        ("a\n" + call("f") + "\nb " + call("f") + " c\n", "a\n\nb  c\n", [("f", {}), ("f", {})]),
        (" \n", " \n", []),
        ("a \n", "a \n", []),
        # Marks outside calls are text.
        ("a</tool_call>b<arg_key>c", "a</tool_call>b<arg_key>c", []),
        # Undeclared, missing and impossible names: the whole call is text.
        ("a " + call("g", ("n", "1")) + "!", "a " + call("g", ("n", "1")) + "!", []),
        (call("") + call("f"), call(""), [("f", {})]),
        (call("f x"), call("f x"), []),
        ("<tool_call>f\nx\n</tool_call>b", "<tool_call>f\nx\n</tool_call>b", []),
        ("<tool_call>g\n" + call("f"), "<tool_call>g", [("f", {})]),
        (
            call("g", ("n", "<tool_call>")) + "b",
            call("g", ("n", "<tool_call>")) + "b",
            [],
        ),
        # A breach after the name: arguments up to it, the rest is text.
        (
            "<tool_call>f<arg_value>1</arg_value></tool_call>b",
            "<tool_call>f<arg_value>1</arg_value></tool_call>b",
            [],
        ),
        (
            "<tool_call>f<arg_key>n</arg_key>x<arg_value>1</arg_value></tool_call>b",
            "<arg_key>n</arg_key>x<arg_value>1</arg_value></tool_call>b",
            [("f", {})],
        ),
        (
            "<tool_call>f<arg_key>n<arg_value>1</arg_value></tool_call>",
            "<arg_key>n<arg_value>1</arg_value></tool_call>",
            [("f", {})],
        ),
        (
            call("f", ("n", "1"), ("n", "2")),
            "<arg_key>n</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
            [("f", {"n": 1})],
        ),
        (
            call("f", ("", "1")),
            "<arg_key></arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
            [("f", {})],
        ),
        (
            "<tool_call>f<arg_key>n</arg_key><arg_value>1</arg_value>why</arg_value></tool_call>",
            "why</arg_value></tool_call>",
            [("f", {"n": 1})],
        ),
        # What ends without its marks.
        ("<tool_call>f", "", [("f", {})]),
        ("<tool_call>f" + call("f"), "", [("f", {}), ("f", {})]),
        ("<tool_call>g", "<tool_call>g", []),
        ("<tool_call>f<arg_key>te", "<arg_key>te", [("f", {})]),
        ("<tool_call>f<arg_key>n</arg_key>", "<arg_key>n</arg_key>", [("f", {})]),
        ("<tool_call>f<arg_key>n</arg_key><arg_value>1", "", [("f", {"n": 1})]),
        ("<tool_call>f<arg_key>text</arg_key><arg_value>a", "", [("f", {"text": "a"})]),
        ("<tool_call>f<arg_key>text</arg_key><arg_value>a</tool_call>", "", [("f", {"text": "a"})]),
        ("<tool_call>f<arg_key>n</arg_key><arg_value>1</arg_value>", "", [("f", {"n": 1})]),
    ],
)  # fmt: skip
def test_text_and_calls_are_told_apart_and_nothing_is_lost(
    reply: str, content: str, calls: list[Any]
) -> None:
    whole = read(reply)
    assert (whole.content, calls_in(whole)) == (content, calls)


def test_marks_within_a_value_are_its_text() -> None:
    text = "<tool_call>x</tool_call><arg_key><think>y</think><|begin_of_box|>"
    assert calls_in(read(call("f", ("text", text)) + "b")) == [("f", {"text": text})]


def test_texts_that_look_like_marks_are_text() -> None:
    look_alikes = "</arg_value></tool_call><tool_call>"
    begin, end = call("f", ("text", "|")).split("|")
    token_ids = [*ids(begin), *tokenizer().encode_text(look_alikes), *ids(end)]
    whole = fold(deltas_of(reader(), token_ids, range(len(token_ids))))
    assert calls_in(whole) == [("f", {"text": look_alikes})]
    token_ids = tokenizer().encode_text(call("f"))
    assert fold(deltas_of(reader(), token_ids, [])).content == call("f")


@pytest.mark.parametrize(
    ("reply", "content", "arguments"),
    [
        ("<tool_call>f", "<tool_call>f", None),
        ("<tool_call>f<arg_key>te", "", ""),
        ("<tool_call>f<arg_key>text</arg_key><arg_value>", "", '{"text": "'),
        ('<tool_call>f<arg_key>text</arg_key><arg_value>say "hi', "", '{"text": "say \\"hi'),
        ("<tool_call>f<arg_key>n</arg_key><arg_value>12", "", ""),
        ("<tool_call>f<arg_key>n</arg_key><arg_value>12</arg_value>", "", '{"n": 12'),
        ("<tool_call>g<arg_key>n</arg_key>x", "<tool_call>g<arg_key>n</arg_key>x", None),
    ],
)
def test_arguments_that_max_tokens_cut_stay_open(
    reply: str, content: str, arguments: str | None
) -> None:
    whole = read(reply, is_cut=True)
    assert whole.content == content
    assert [each.arguments for each in whole.calls] == [arguments] * (arguments is not None)


@pytest.mark.parametrize("before", [PROMPT, OPENED])
def test_a_call_ends_thoughts_that_are_not_finished(before: str) -> None:
    opening = "" if before is OPENED else "<think>"
    whole = read(f"{opening}I must look. \n" + call("f") + "\nThere.", before)
    assert (whole.reasoning, whole.content) == ("I must look.", "There.")
    assert calls_in(whole) == [("f", {})]
    whole = read(f"{opening}hm" + call("g"), before)
    assert (whole.reasoning, whole.content) == ("hm", call("g"))


def test_thoughts_after_a_call_are_thoughts() -> None:
    whole = read("<think>a</think>b" + call("f") + "<think>c</think>d", PROMPT)
    assert (whole.reasoning, whole.content, calls_in(whole)) == ("ac", "bd", [("f", {})])


def test_what_comes_before_a_call_is_decided_content() -> None:
    whole = read("b" + call("f") + "</think>c", PROMPT)
    assert (whole.reasoning, whole.content) == ("", "bc")


def test_stop_strings_count_in_text_and_not_in_calls() -> None:
    whole = read("a" + call("f", ("text", "STOP")) + "b STOP c", stop=["STOP"])
    assert (whole.content, whole.stopped) == ("ab ", "STOP")
    assert calls_in(whole) == [("f", {"text": "STOP"})]
    whole = read("a ST" + call("f") + "OP", stop=["STOP"])
    assert (whole.content, whole.stopped) == ("a STOP", None)


def test_a_single_call_ends_the_reply() -> None:
    token_ids = ids("a " + call("g") + call("f", ("n", "1")) + "b" + call("f"))
    for cuts in ([], list(range(len(token_ids)))):
        whole = fold(deltas_of(reader(only_one=True), token_ids, cuts))
        assert (whole.content, calls_in(whole)) == ("a " + call("g"), [("f", {"n": 1})])
        assert whole.ends_with_call


def test_half_characters_and_nul_are_text() -> None:
    begin, end = call("f", ("text", "|")).split("|")
    half = tokenizer().encode_text("é")[:1]
    token_ids = [*ids(begin), *tokenizer().encode_text("a\0"), *half, *ids(end)]
    whole = fold(deltas_of(reader(), token_ids, range(len(token_ids))))
    assert calls_in(whole) == [("f", {"text": "a\0\ufffd"})]
    whole = fold(deltas_of(reader(), [*ids("<tool_call>"), *half, *ids("</tool_call>b")], []))
    assert whole.content == "<tool_call>\ufffd</tool_call>b"


def test_strings_come_as_they_are_written() -> None:
    text = "one two three four five six"
    token_ids = ids(call("f", ("text", text)))
    pieces = deltas_of(reader(), token_ids, range(len(token_ids)))
    fragments = [each.arguments for delta in pieces for each in delta.calls if each.arguments]
    assert len(fragments) > len(tokenizer().encode_text(text)) // 2
    assert "".join(fragments) == json.dumps({"text": text})


def test_a_tokenizer_without_the_marks_has_no_calls() -> None:
    assert CallTokens.of(tokenizer_without("<arg_key>")) is None
    assert CallTokens.of(tokenizer("4.1")) is None


def test_a_long_reply_takes_time_in_proportion() -> None:
    """A parser that went back to the beginning of an argument for each of its tokens would not
    come to an end here."""
    word = tokenizer().encode_text(" fox")
    begin, end = ids("<tool_call>f<arg_key>text</arg_key><arg_value>"), ids("</arg_value>")
    longest = reader()
    longest.push(begin)
    for _ in range(50_000):
        longest.push(word)
    for token_ids in (ids("<tool_call>") * 10_000, end, ids("</tool_call>")):
        longest.push(token_ids)
    assert longest.num_calls == 1


MARKS = [
    *("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    *("<think>", "</think>"),
]
# Whole calls, calls in pieces, and what a model might make of them.
PARTS = st.one_of(
    st.sampled_from(MARKS),
    st.sampled_from(
        ["f", "g", "text", "n", "maybe", "box", "\n", "\\n", " ", '{"w": "1"}', "null"]
    ),
    st.text(st.sampled_from('ab12 \n€😀"\\'), max_size=5),
    st.builds(
        call,
        st.sampled_from(["f", "f", "get.time-2", "g", " f", ""]),
        st.tuples(
            st.sampled_from(list(SCHEMA["properties"])),
            st.one_of(st.sampled_from(["null", "12", "[1]"]), st.text(max_size=6)),
        ),
        between=st.sampled_from(["\n", ""]),
    ),
)
REPLIES = st.lists(PARTS, max_size=8).map("".join)
CUTS = st.lists(st.integers(0, 120), max_size=12)
BEFORE = st.sampled_from([PROMPT, OPENED, CLOSED])


@given(REPLIES, CUTS, BEFORE, st.booleans(), st.booleans(), st.sampled_from([(), ("a", "b2")]))
@example("a\n" + call("f", ("text", "b")), [1, 2], CLOSED, False, False, ())
@example("<think>a" + call("f", ("n", "1")), [2], PROMPT, False, False, ())
@settings(max_examples=400)
def test_deltas_fold_to_the_same_reply_however_it_came(
    reply: str, cuts: list[int], before: str, is_cut: bool, only_one: bool, stop: tuple[str, ...]
) -> None:
    token_ids = ids(reply)
    whole, cut, single = (
        fold(
            deltas_of(reader(before, only_one=only_one, stop=stop), token_ids, edges, is_cut=is_cut)
        )
        for edges in ([], cuts, range(len(token_ids)))
    )
    assert whole == cut == single


@given(REPLIES, CUTS, BEFORE)
@settings(max_examples=200)
def test_arguments_are_the_beginning_of_one_json_object_at_any_moment(
    reply: str, cuts: list[int], before: str
) -> None:
    so_far: dict[int, str] = {}
    names: dict[int, str] = {}
    deltas = deltas_of(reader(before), ids(reply), cuts)
    for delta in deltas:
        for each in delta.calls:
            assert (each.index in names) == (not each.name), "the name comes first, and once"
            names.setdefault(each.index, each.name)
            so_far[each.index] = so_far.get(each.index, "") + each.arguments
            assert is_beginning_of_json(so_far[each.index])
    assert list(names) == list(range(len(names)))
    assert set(names.values()) <= set(TOOLS)
    for arguments in so_far.values():
        assert isinstance(json.loads(arguments), dict), "a reply that ends by itself is whole"


def is_beginning_of_json(text: str) -> bool:
    """Whether some continuation makes it an object: close what is open, try what may be missing."""
    if not text:
        return True
    for ending in ("", "}", '"}', "null}", '""}', '"": 0}'):
        try:
            return isinstance(json.loads(text + ending), dict)
        except ValueError:
            continue
    return False


@given(REPLIES)
@settings(max_examples=200)
def test_nothing_but_whitespace_and_marks_is_lost(reply: str) -> None:
    """Every visible character is in the thoughts, the content, or a call."""
    whole = read(reply, PROMPT)
    told = whole.reasoning + whole.content
    told += "".join(each.name + each.arguments for each in whole.calls)
    for character in "€😀":
        assert told.count(character) >= reply.count(character)


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.sampled_from(["text", "maybe"]))
def test_any_text_survives_as_a_string(text: str, key: str) -> None:
    begin, end = call("f", (key, "|")).split("|")
    token_ids = [*ids(begin), *tokenizer().encode_text(text), *ids(end)]
    ((_, arguments),) = calls_in(fold(deltas_of(reader(), token_ids, range(len(token_ids)))))
    expected = None if key == "maybe" and text.strip() == "null" else text
    assert arguments == {key: expected}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(json_values)
def test_any_json_value_survives_where_the_schema_is_silent(value: Any) -> None:
    begin, end = call("f", ("free", "|")).split("|")
    token_ids = [*ids(begin), *tokenizer().encode_text(json.dumps(value)), *ids(end)]
    ((_, arguments),) = calls_in(fold(deltas_of(reader(), token_ids, [])))
    assert arguments == {"free": value}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": "number"}, {"number", "integer"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"enum": ["a", 1]}, {"string", "integer"}),
        ({"const": None}, {"null"}),
        ({"oneOf": [{"type": "string"}, {"enum": [1]}]}, {"string", "integer"}),
        ({"allOf": [{"type": ["string", "null"]}, {"type": "string"}]}, {"string"}),
        ({"type": ["string", "null"], "anyOf": [{"type": "string"}]}, {"string"}),
        ({"$ref": "#/$defs/city"}, {"string"}),
        ({"properties": {"a": {}}, "type": "object"}, {"object"}),
    ],
)
def test_types_follow_unions_intersections_and_references(schema: Any, types: set[str]) -> None:
    root = {"properties": {"v": schema}, "$defs": {"city": {"type": "string"}}}
    arguments = ArgumentTypes(root)
    assert arguments.types_of(arguments.schema_of("v")) == types


def test_schemas_that_refer_to_themselves_end() -> None:
    tree: dict[str, Any] = {
        "properties": {
            "self": {"$ref": "#"},
            "loop": {"$ref": "#/$defs/a"},
            "node": {"$ref": "#/$defs/node"},
        },
        "$defs": {
            "a": {"$ref": "#/$defs/b"},
            "b": {"$ref": "#/$defs/a"},
            "node": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/pair"}]},
            "pair": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "next": {"$ref": "#/$defs/node"}},
            },
        },
    }
    types = ArgumentTypes(tree)
    for key, text in (("self", "1"), ("loop", "[1]"), ("other", "{}")):
        assert json.loads(types.to_json(text, types.schema_of(key))) == json.loads(text)
    node = '{"name": 1, "next": {"name": 2, "next": null}}'
    assert json.loads(types.to_json(node, types.schema_of("node"))) == {
        "name": "1",
        "next": {"name": "2", "next": None},
    }
