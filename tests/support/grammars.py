"""Grammars over the tiny vocabulary, compiled on the spot or at last, and what they describe."""

from __future__ import annotations

import functools
import json
import random
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np

from glimt.frontend.tokenizer import Tokenizer
from glimt.grammar.compiler import GrammarCompiler
from glimt.grammar.source import (
    choice_grammar,
    json_schema_grammar,
    lark_grammar,
    regex_grammar,
)
from glimt.grammar.vocabulary import Bits, Vocabulary
from glimt.tiny.tokenizer import make_tokenizer
from glimt.wire import Grammar, SamplingParams, ThinkingBudget, ThoughtTokens


class InlinePool(Executor):
    """Does at once what it is given: no threads, no time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class SlowPool(Executor):
    """Does one thing more each time it is told to: a thread whose pace a test decides."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.append((future, lambda: fn(*args, **kwargs)))
        return future

    def work(self) -> bool:
        """Do the oldest thing; False if there is none."""
        if not self._waiting:
            return False
        future, do = self._waiting.pop(0)
        try:
            future.set_result(do())
        except Exception as error:
            future.set_exception(error)
        return True


@functools.cache
def tiny_language(size: int = 1000) -> tuple[Tokenizer, Vocabulary]:
    """The tiny tokenizer, and its vocabulary for logits of `size` rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        make_tokenizer("4.5").save(str(path))
        return Tokenizer(path), Vocabulary.read(path, size)


@functools.cache
def small_vocabulary(size: int = 320) -> Vocabulary:
    """The bytes, a few merges, and the control tokens: for models with few tokens."""
    file = json.loads(make_tokenizer("4.5").to_str())
    kept = {text: token for text, token in file["model"]["vocab"].items() if token < 272}
    file["model"]["vocab"] = kept
    file["model"]["merges"] = [pair for pair in file["model"]["merges"] if "".join(pair) in kept]
    for place, token in enumerate(file["added_tokens"]):
        token["id"] = 272 + place
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(file))
        return Vocabulary.read(path, size)


def tiny_compiler(pool: Executor | None = None, size: int = 1000) -> GrammarCompiler:
    """A compiler with a cache of its own."""
    _, vocabulary = tiny_language(size)
    return GrammarCompiler(vocabulary, pool or InlinePool())


def ids_in(bits_W: Bits) -> set[int]:
    """The tokens of a set."""
    bits = np.unpackbits(bits_W.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y", None]}},
    "required": ["b"],
    "additionalProperties": False,
}


def _is_instance(text: str) -> bool:
    value = json.loads(text)
    return (
        set(value) <= {"a", "b"}
        and value["b"] in ("x", "y", None)
        and isinstance(value.get("a", 0), int)
    )


# Grammar -> whether a whole answer is as it says.
DESCRIBED: dict[str, Callable[[str], bool]] = {
    regex_grammar("[a-c ]{2,9}"): lambda text: re.fullmatch("[a-c ]{2,9}", text) is not None,
    regex_grammar(""): lambda text: text == "",
    choice_grammar(["a", "the answer", "no"]): lambda text: text in ("a", "the answer", "no"),
    lark_grammar('start: "(" (start | "x") ")"'): (
        lambda text: text == "(" * (len(text) // 2) + "x" + ")" * (len(text) // 2)
    ),
    json_schema_grammar(_SCHEMA, whitespace=" ?"): _is_instance,
}
REFUSED = "start: ("


def thought_tokens() -> ThoughtTokens:
    """Those of the tiny vocabulary."""
    control = tiny_language()[0].control_tokens
    return ThoughtTokens(
        begin=control["<think>"],
        end=control["</think>"],
        leave=(control["<tool_call>"],),
        line_breaks=tuple(tiny_language()[0].encode_text("\n")),
    )


def random_grammar(rng: random.Random) -> Grammar:
    """Any of them, with or without thoughts before it; now and then one that is refused."""
    text = REFUSED if rng.random() < 0.05 else rng.choice([*DESCRIBED])
    channel = rng.choice(["content", "content", "undecided", "reasoning"])
    thoughts = None if channel == "content" else thought_tokens()
    return Grammar(text=text, channel=channel, thoughts=thoughts)


def random_budget(rng: random.Random, grammar: Grammar | None) -> ThinkingBudget | None:
    """For an answer that thinks, or may; None for one under a grammar that does not."""
    thoughts = thought_tokens()
    channel = rng.choice(["reasoning", "undecided"]) if grammar is None else grammar.channel
    if channel == "content":
        return None
    return ThinkingBudget(
        max_tokens=rng.choice([0, 1, 2, 5]),
        channel=channel,
        thoughts=thoughts,
        closing=(*thoughts.line_breaks, thoughts.end),
    )


def answer_text(token_ids: Sequence[int], sampling: SamplingParams) -> str | None:
    """What was said under the grammar: without thoughts and end; None if it came to nothing."""
    grammar = sampling.grammar
    assert grammar is not None
    ids = [token for token in token_ids if token not in sampling.eos_token_ids]
    thoughts = grammar.thoughts
    if thoughts is not None:
        starts = [token for token in ids[:2] if token not in thoughts.line_breaks][:1]
        if grammar.channel == "reasoning" or starts == [thoughts.begin]:
            if thoughts.end not in ids:
                return None
            ids = ids[ids.index(thoughts.end) + 1 :]
        ids = ids[1:] if ids[:1] and ids[0] in thoughts.line_breaks else ids
    return tiny_language()[0].decode(ids)
