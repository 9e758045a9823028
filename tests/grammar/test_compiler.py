"""Grammars as clients and the server write them: what they let through, and what they refuse."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.errors import BadCheckpoint, BadGrammar
from glimt.grammar import compiler as limits
from glimt.grammar.compiler import GrammarCompiler
from glimt.grammar.matcher import Matcher
from glimt.grammar.source import (
    ANY_OBJECT,
    choice_grammar,
    json_schema_grammar,
    lark_grammar,
    regex_grammar,
)
from glimt.grammar.vocabulary import Vocabulary, allow, bits_of, forbid
from tests.support.grammars import ids_in, tiny_compiler, tiny_language

COMPILER = tiny_compiler()


def compiled(text: str) -> Matcher:
    return COMPILER.start(text).result().copy()


def takes(text: str, answer: str) -> bool:
    """Whether an answer is whole, read token by token."""
    matcher = compiled(text)
    for token_id in tiny_language()[0].encode_text(answer):
        if not matcher.accepts(token_id):
            return False
        matcher.accept(token_id)
    return matcher.is_accepting


def allowed(matcher: Matcher) -> set[int]:
    bits_W = np.empty(matcher.vocabulary.num_words, np.uint32)
    matcher.fill(bits_W)
    return ids_in(bits_W)


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        (regex_grammar(r"\d{2}-[a-f]+"), ["12-a", "00-feed"], ["1-a", "12-", "12-g", "12-a "]),
        (regex_grammar(r"^a|b/c$"), ["a", "b/c"], ["b", "^a"]),
        (regex_grammar(r"[\d]+"), ["7"], ["٧"]),
        (choice_grammar(["yes", "né\n\"\\"]), ["yes", "né\n\"\\"], ["y", "yesyes"]),
        (choice_grammar(["<|user|>", "", "a"]), ["<|user|>", "", "a"], ["<"]),
        (lark_grammar('start: "a" b+\nb: /[xy]/'), ["ax", "axyx"], ["a", "x", "axz"]),
        (json_schema_grammar(ANY_OBJECT), ['{"a": [1, {}]}', '{\n  "b":\tnull}'], ["[]", " {}"]),
        (json_schema_grammar({}), ["1", '"é"', "[null]"], ["x", "01"]),
        (json_schema_grammar({"type": "array"}, whitespace=""), ["[1,2]"], ["[1, 2]"]),
        (json_schema_grammar({"type": "array"}, whitespace=" ?"), ["[1, 2]"], ["[1,  2]"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_grammar_takes_what_it_describes_and_nothing_else(
    text: str, good: list[str], bad: list[str]
) -> None:
    assert [answer for answer in good if not takes(text, answer)] == []
    assert [answer for answer in bad if takes(text, answer)] == []


def test_json_cannot_be_filled_with_whitespace() -> None:
    text = json_schema_grammar({})
    value = {"a": [1, {"b": []}], "c": {}}
    printed = [json.dumps(value, indent=each) for each in (None, 0, 2, 8, "\t")]
    assert [answer for answer in printed if not takes(text, answer)] == []
    assert takes(text, printed[2].replace("\n", "\r\n"))
    for blanks in ("  ", "\n\n", "\n" + " " * 65):
        assert not takes(text, f"[{blanks}1]")


ANYTHING = [
    json_schema_grammar({}),
    regex_grammar("(?s:.*)"),
    lark_grammar("start: /(?s:.*)/"),
    choice_grammar(["<|user|>", "</think>"]),
]


@pytest.mark.parametrize("text", ANYTHING)
def test_text_of_a_grammar_is_never_a_control_token(text: str) -> None:
    control = set(tiny_language()[0].control_tokens.values())
    matcher = compiled(text)
    for token_id in tiny_language()[0].encode_text("<|user|>"):
        assert not allowed(matcher) & control
        if not matcher.accepts(token_id):
            break
        matcher.accept(token_id)


def test_ids_without_a_token_are_never_allowed() -> None:
    tokenizer, vocabulary = tiny_language()
    assert vocabulary.size > tokenizer.vocab_size
    assert max(allowed(compiled(ANYTHING[1]))) < tokenizer.vocab_size


def test_a_grammar_of_the_servers_own_may_name_control_tokens() -> None:
    tokenizer, _ = tiny_language()
    matcher = compiled(lark_grammar('start: <tool_call> "a" </tool_call>'))
    call, end = (tokenizer.control_tokens[text] for text in ("<tool_call>", "</tool_call>"))
    assert allowed(matcher) == {call}
    for token_id in (call, *tokenizer.encode_text("a"), end):
        assert not matcher.is_complete
        matcher.accept(token_id)
    assert matcher.is_complete


def test_a_token_that_may_not_come_is_refused() -> None:
    matcher = compiled(choice_grammar(["no"]))
    with pytest.raises(BadGrammar):
        matcher.accept(tiny_language()[0].encode_text("yes")[0])


@pytest.mark.parametrize(
    "text",
    [
        *(regex_grammar(each) for each in ("[", "(?<=x)a", "(?P<a", "a{2,1}", "(" * 3000)),
        *(lark_grammar(each) for each in ("", 'a: "x"', "start: nothing", "start: (" * 5000)),
        lark_grammar("start: <no_such_token>"),
        json_schema_grammar({"type": "objekt"}),
        json_schema_grammar({"$ref": "#"}),
        json_schema_grammar({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
        json_schema_grammar({"type": "string", "minLength": 3, "maxLength": 2}),
        json_schema_grammar({"enum": []}),
        json_schema_grammar({"not": {}}),
        json_schema_grammar({"type": "object", "x-guidance": {"lenient": True}, "if": {}}),
    ],
)
def test_what_cannot_be_compiled_says_why(text: str) -> None:
    with pytest.raises(BadGrammar) as caught:
        COMPILER.start(text).result()
    assert 10 < len(caught.value.message) <= 500


@pytest.mark.parametrize(
    "text",
    [
        regex_grammar("(a?){2000}a{2000}"),
        regex_grammar("(.*a.{150}|.*b.{150}|.*c.{150}|.*d.{100}|.*e.{100})"),
        lark_grammar("start: A\nA: /(.*a.{12})/ & /(.*b.{12})/ & ~/.*c.{12}/"),
        lark_grammar('start: "a"\n' + "\n".join(f'r{i}: "x"' for i in range(2000))),
        json_schema_grammar({"enum": [f"value {i}" for i in range(5000)]}),
    ],
)
def test_a_pathological_grammar_is_compiled_or_refused_within_its_limits(text: str) -> None:
    """Limits count work, not time, so that this is the same on every machine."""
    try:
        matcher = COMPILER.start(text).result().copy()
        for _ in range(20):
            matcher.accept(min(allowed(matcher)))
    except (BadGrammar, ValueError):
        return


def test_equal_grammars_are_compiled_once_and_refusals_are_remembered() -> None:
    compiler = tiny_compiler()
    assert compiler.start(ANYTHING[0]) is compiler.start(ANYTHING[0])
    assert compiler.start("start: (") is compiler.start("start: (")
    assert compiler.num_cached == 2


def test_the_cache_is_bounded_by_number_and_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tiny_compiler()
    for number in range(limits.MAX_CACHED + 20):
        compiler.start(choice_grammar([str(number)]))
    assert compiler.num_cached == limits.MAX_CACHED
    monkeypatch.setattr(limits, "MAX_CACHED_CHARS", 5000)
    for number in range(10):
        compiler.start(choice_grammar([str(number) * 2000])).result()
    assert compiler.num_cached == 2
    compiler.start(choice_grammar(["x" * 6000])).result()  # too large to be kept
    assert compiler.num_cached == 0


def test_nobody_waits_while_a_thread_compiles() -> None:
    busy, pool = threading.Event(), ThreadPoolExecutor(1)
    pool.submit(busy.wait, 30)
    compiler = GrammarCompiler(tiny_language()[1], pool)
    future = compiler.start(ANYTHING[0])
    assert not future.done()
    busy.set()
    assert not future.result(30).is_complete
    compiler.close()


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "tokenizer.json"
    for content in ("", "[]", "{}", json.dumps({"added_tokens": []}), '{"added_tokens": [{}]}'):
        path.write_text(content)
        with pytest.raises(BadCheckpoint, match=r"tokenizer\.json"):
            Vocabulary.read(path, 100)


@given(size=st.integers(1, 200), data=st.data())
def test_sets_of_tokens_are_bits(size: int, data: st.DataObject) -> None:
    tokens = st.sets(st.integers(0, size - 1))
    first, second, third = (data.draw(tokens) for _ in range(3))
    bits_W = bits_of(first, size)
    allow(bits_W, second)
    forbid(bits_W, third)
    assert bits_W.dtype == np.uint32
    assert len(bits_W) == -(-size // 32)
    assert ids_in(bits_W) == (first | second) - third
