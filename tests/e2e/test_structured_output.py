"""Answers under a grammar, from a whole server, asked for by the official client."""

from __future__ import annotations

import concurrent.futures
import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

USER = [{"role": "user", "content": "Say something"}]
HOT: dict[str, Any] = {"model": "tiny", "messages": USER, "temperature": 2.0, "max_tokens": 200}
# The checkpoint's defaults, like those of GLM-4.5V, are as good as greedy.
ANY: dict[str, Any] = {"top_k": 0, "top_p": 1.0}


class Box(pydantic.BaseModel):
    """What the client's `parse` makes a schema of."""

    model_config = pydantic.ConfigDict(extra="forbid")

    kind: Literal["cat", "dog"]
    count: int = pydantic.Field(ge=0, le=99)
    sure: bool | None


def quiet(**fields: Any) -> dict[str, Any]:
    """Without thoughts, which a random model does not end by itself."""
    kwargs = {"enable_thinking": False}
    return {**HOT, "extra_body": {**ANY, "chat_template_kwargs": kwargs, **fields}}


@pytest.mark.filterwarnings("default")
def test_the_official_client_parses_answers_into_its_models(client: Any) -> None:
    answer = client.chat.completions.parse(
        **quiet(structured_outputs=None), response_format=Box, seed=1
    )
    assert isinstance(answer.choices[0].message.parsed, Box)
    assert answer.choices[0].finish_reason == "stop"


def test_streams_choices_and_neighbours_are_each_under_their_own_grammar(client: Any) -> None:
    def streamed(seed: int) -> None:
        stream = client.chat.completions.create(
            **quiet(structured_outputs={"regex": "[a-f]{2,4}!"}), seed=seed, stream=True
        )
        text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
        assert re.fullmatch("[a-f]{2,4}!", text)

    def several(seed: int) -> None:
        choices = ["yes", "no", "perhaps"]
        answer = client.chat.completions.create(
            **quiet(structured_outputs={"choice": choices}), seed=seed, n=3
        )
        assert all(choice.message.content in choices for choice in answer.choices)

    def free(seed: int) -> None:
        fields = {**quiet(), "max_tokens": 12}
        answer = client.chat.completions.create(**fields, seed=seed)
        assert answer.usage.completion_tokens <= 12

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(kind, seed) for seed in range(4) for kind in (streamed, several, free)]
        for job in jobs:
            job.result()


def test_thoughts_come_before_the_grammar_begins(client: Any, checkpoint: Path) -> None:
    """A random model is made to think of nothing but a's, and to stop thinking at some time."""
    file = json.loads((checkpoint / "tokenizer.json").read_text())
    marks = {token["content"]: token["id"] for token in file["added_tokens"]}
    likely = [marks["<think>"], marks["</think>"], file["model"]["vocab"]["a"]]
    thoughts = []
    for seed in range(6):
        answer = client.chat.completions.create(
            **HOT | {"temperature": 4.0, "max_tokens": 60},
            seed=seed,
            logit_bias={str(token_id): 60.0 for token_id in likely},
            extra_body={**ANY, "guided_choice": ["yes", "no"]},
        )
        message = answer.choices[0].message
        assert message.content in ("yes", "no")
        thoughts.append(message.reasoning or "")
    assert max(len(thought) for thought in thoughts) > 0
    assert all(set(thought) <= {"a"} for thought in thoughts)


def test_a_bad_grammar_is_a_400_and_others_go_on(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**quiet(structured_outputs={"regex": "("}))
    assert caught.value.body["param"] == "structured_outputs.regex"
    assert caught.value.body["code"] == "invalid_grammar"


PATHOLOGICAL: list[dict[str, Any]] = [
    {"grammar": "start: s\ns: s s | /[a-z ]/ | "},
    {"grammar": "start: " + "(" * 20_000},
    {"grammar": 'start: "a"\n' + "\n".join(f'r{i}: "x"' for i in range(4000))},
    {"grammar": "start: A\nA: /(.*a.{12})/ & /(.*b.{12})/ & ~/.*c.{12}/"},
    {"regex": "(a?){2000}a{2000}"},
    {"regex": "(a+)+b"},
    {"regex": "(a{1,1000}){1,1000}"},
    {"regex": "(" * 15_000},
    {"json": {"properties": {f"p{i}": {"type": "integer"} for i in range(512)}, "type": "object"}},
    {"json": {"enum": [f"value {i}" for i in range(9000)]}},
    {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}},
]


def test_pathological_grammars_are_refused_or_answered_and_others_go_on(client: Any) -> None:
    def hostile(wish: dict[str, Any]) -> str:
        try:
            client.chat.completions.create(**quiet(structured_outputs=wish) | {"max_tokens": 60})
        except openai.BadRequestError as error:
            return str(error.body["code"])
        return "answered"

    def plain(seed: int) -> str:
        fields = {**quiet(structured_outputs={"regex": "[a-f]{20}"}), "seed": seed}
        text: str = client.chat.completions.create(**fields).choices[0].message.content
        return text

    alone = [plain(seed) for seed in range(3)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(hostile, wish) for wish in PATHOLOGICAL]
        beside = [job.result() for job in [pool.submit(plain, seed) for seed in range(3)]]
        ends = [job.result() for job in jobs]
    assert set(ends) == {"answered", "invalid_grammar"}
    assert beside == alone
