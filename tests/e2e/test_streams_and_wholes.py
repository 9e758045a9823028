"""A stream and a whole answer of a running server are one: thoughts, calls, forms, choices."""

import json
import random
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.serving import Serving

FORM = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "box": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    },
    "required": ["kind", "count"],
    "additionalProperties": False,
}
MARK = {
    "type": "object",
    "properties": {
        "label": {"type": ["string", "null"]},
        "n": {"anyOf": [{"type": "integer"}, {"type": "boolean"}]},
    },
    "required": ["n"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "mark", "strict": True, "parameters": MARK}},
    {"type": "function", "function": {"name": "clock"}},
]
CHOICES = ["auto", "required", {"type": "function", "function": {"name": "mark"}}]


@pytest.fixture(scope="module")
def marks(checkpoint: Path) -> dict[str, int]:
    file = json.loads((checkpoint / "tokenizer.json").read_text())
    return {token["content"]: token["id"] for token in file["added_tokens"]}


def wish(rng: random.Random, marks: dict[str, int]) -> dict[str, Any]:
    """A request for several things at once, of a model that is led towards marks."""
    bias = {"</think>": rng.choice([0, 8, 14]), "<|user|>": 6, "<tool_call>": rng.choice([0, 12])}
    fields: dict[str, Any] = {
        "messages": [{"role": "user", "content": "go"}],
        "max_tokens": rng.choice([30, 60]),
        "seed": rng.getrandbits(32),
        "temperature": 2.0,
        "top_k": 0,
        "top_p": 1,
        "n": rng.choice([1, 2, 3]),
        "logit_bias": {str(marks[mark]): value for mark, value in bias.items()},
        "return_token_ids": True,
    }
    if rng.random() < 0.6:
        fields |= {"tools": TOOLS, "tool_choice": rng.choice(CHOICES)}
    if rng.random() < 0.5:
        form = {"name": "form", "schema": FORM, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": form}
    if rng.random() < 0.3:
        fields["thinking_token_budget"] = rng.choice([0, 5, 20])
    if rng.random() < 0.3:
        fields["chat_template_kwargs"] = {"enable_thinking": False}
    if rng.random() < 0.3:
        fields["stop"] = ["e"]
    return fields


def folded(chunks: list[Any]) -> dict[int, dict[str, Any]]:
    """The choices of a stream, as clients add them up."""
    choices: dict[int, dict[str, Any]] = {}
    for each in (choice for chunk in chunks for choice in chunk["choices"]):
        empty: dict[str, Any] = {
            "content": "",
            "reasoning": "",
            "calls": [],
            "ids": [],
            "end": None,
        }
        choice = choices.setdefault(each["index"], empty)
        delta = each["delta"]
        choice["content"] += delta.get("content", "")
        choice["reasoning"] += delta.get("reasoning", "")
        for call in delta.get("tool_calls", []):
            if call["index"] == len(choice["calls"]):
                choice["calls"].append(["", ""])
            for place, name in enumerate(("name", "arguments")):
                choice["calls"][call["index"]][place] += call["function"].get(name, "")
        choice["ids"] += each.get("token_ids", [])
        choice["end"] = choice["end"] or each["finish_reason"]
    return choices


def told(choice: Any) -> dict[str, Any]:
    """A choice of a whole answer, in the same words."""
    message = choice["message"]
    functions = [call["function"] for call in message.get("tool_calls", [])]
    return {
        "content": message["content"] or "",
        "reasoning": message["reasoning"] or "",
        "calls": [[each["name"], each["arguments"]] for each in functions],
        "ids": choice["token_ids"],
        "end": choice["finish_reason"],
    }


async def test_everything_at_once_is_the_same_streamed_and_whole(
    serving: Serving, marks: dict[str, int]
) -> None:
    rng = random.Random(6)
    seen: set[str] = set()
    async with aiohttp.ClientSession(serving.url) as http:
        for _ in range(7):
            fields = wish(rng, marks)
            async with http.post("/v1/chat/completions", json=fields) as reply:
                whole = await reply.json()
                assert reply.status == 200, whole
            async with http.post("/v1/chat/completions", json={**fields, "stream": True}) as reply:
                lines = (await reply.text()).split("\n\n")
            choices = folded([json.loads(line[6:]) for line in lines if line[6:7] == "{"])
            assert len(choices) == fields["n"]
            for choice in whole["choices"]:
                expected = told(choice)
                assert choices[choice["index"]] == expected, fields
                if expected["end"] != "length":
                    assert all(isinstance(json.loads(text), dict) for _, text in expected["calls"])
                seen |= {name for name in ("reasoning", "calls") if expected[name]}
                seen.add(expected["end"])
    assert seen == {"reasoning", "calls", "stop", "length", "tool_calls"}
