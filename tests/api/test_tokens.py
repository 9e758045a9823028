"""Prompts that are made and shown, not answered; models by name; load."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from tests.support.http_half import HEADERS, INFO, MODEL, Reply, Serving, chat_body, spoken
from tests.support.prompts import tokenizer

HOST = [(b"host", b"localhost")]
RENDER = "/v1/chat/completions/render"
PICTURE = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "a<|user|>b"},
            {"type": "image_url", "image_url": {"url": "data:a"}},
            {"type": "video_url", "video_url": {"url": "data:v"}},
        ],
    }
]


async def post(serving: Serving, path: str, **fields: Any) -> Reply:
    return await serving.ask("POST", path, body=json.dumps(fields).encode())


async def test_a_conversations_tokens_are_those_it_would_be_answered_from() -> None:
    serving = Serving()
    counted = (await post(serving, "/tokenize", messages=PICTURE)).json()
    answer = (await serving.chat(messages=PICTURE)).json()
    assert counted["count"] == len(counted["tokens"]) == answer["usage"]["prompt_tokens"]
    assert counted["max_model_len"] == INFO.max_model_len
    assert [lease.released for lease in serving.media.leases[:2]] == [1, 1]
    rendered = (await serving.ask("POST", RENDER, body=chat_body(messages=PICTURE))).json()
    assert rendered["token_ids"] == counted["tokens"]
    assert rendered["num_tokens"] == counted["count"]
    assert rendered["prompt"].count("<|image|>") == 3  # a picture and two steps of a video
    for place in rendered["media"]:
        run = rendered["token_ids"][place["offset"] : place["offset"] + place["length"]]
        assert set(run) == {tokenizer().control_tokens["<|image|>"]}
    assert rendered["sampling_params"]["max_tokens"] == 64
    assert len(serving.engine.submits) == 1
    assert all(lease.released for lease in serving.media.leases)


async def test_rendered_parameters_are_those_that_an_engine_gets() -> None:
    fields = {
        "thinking_token_budget": 5,
        "guided_regex": "a+",
        "seed": 1,
        "stop_token_ids": [3],
    }
    serving = Serving(parse_reasoning=True)
    await serving.chat(**fields)
    rendered = (await serving.ask("POST", RENDER, body=chat_body(**fields))).json()
    given = serving.engine.submits[0].sampling
    assert given.thinking is not None
    assert rendered["sampling_params"] == json.loads(msgspec.json.encode(given))


async def test_a_text_is_tokenized_and_back() -> None:
    serving = Serving()
    text = "Grüße <|user|>"
    plain = (await post(serving, "/tokenize", prompt=text, add_special_tokens=False)).json()
    assert plain["tokens"] == tokenizer().encode_text(text)
    assert plain["token_strs"] is None
    special = (await post(serving, "/tokenize", prompt=text, return_token_strs=True)).json()
    assert special["token_strs"][:2] == ["[gMASK]", "<sop>"]
    assert special["count"] == plain["count"] + 2
    back = (await post(serving, "/detokenize", model=MODEL, tokens=plain["tokens"])).json()
    assert back == {"prompt": text}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": PICTURE}, "prompt"),
        ("/tokenize", {"messages": PICTURE, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a" * 10_000}, "prompt"),
        ("/detokenize", {"tokens": [1, 10**6]}, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {}, "tokens"),
    ],
)
async def test_what_cannot_be_tokenized_says_why(path: str, fields: Any, param: str) -> None:
    reply = await post(Serving(), path, **fields)
    assert (reply.status, reply.error["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", RENDER])
async def test_fields_nobody_knows_and_models_nobody_serves_are_told(path: str) -> None:
    serving = Serving()
    fields: dict[str, Any] = {"tokens": [5]} if path == "/detokenize" else {"messages": PICTURE}
    reply = await post(serving, path, unheard_of=1, **fields)
    assert (reply.status, reply.headers["x-glimt-ignored-fields"]) == (200, "unheard_of")
    reply = await post(serving, path, model="other", **fields)
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")


async def test_a_prompt_that_is_too_long_cannot_be_rendered() -> None:
    body = chat_body(max_tokens=INFO.max_model_len)
    reply = await Serving().ask("POST", RENDER, body=body)
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")


async def test_a_model_is_found_by_each_of_its_names() -> None:
    serving = Serving(served_names=("org/tiny", "alias"))
    for name in ("org/tiny", "alias"):
        card = (await serving.ask("GET", f"/v1/models/{name}", headers=HOST)).json()
        assert (card["id"], card["limits"]["max_images"]) == (name, 32)
    for name in ("org", "org/tiny/", "ALIAS"):
        reply = await serving.ask("GET", f"/v1/models/{name}", headers=HOST)
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert (await serving.ask("GET", "/v1/models/", headers=HOST)).status == 404


async def test_the_load_is_what_runs_and_waits() -> None:
    serving = Serving()
    nothing = {"server_load": 0, "queued_tokens": 0, "usage": 0.0}
    assert (await serving.call("GET", "/load", headers=HOST)).json() == nothing
    with serving.client.preparing(3):
        reply = await serving.call("GET", "/load", headers=HEADERS)
    assert reply.json() == {**nothing, "server_load": 3}


async def test_the_load_says_what_is_queued_and_how_much_of_the_engines_is_in_use() -> None:
    serving = Serving(spoken("A longer answer than one step gives."))
    asked = [asyncio.create_task(serving.call(body=chat_body())) for _ in range(2)]
    while len(serving.engine.submits) < 2:
        await asyncio.sleep(0)
    num_prompt = sum(len(submit.token_ids) // 4 for submit in serving.engine.submits)
    load = (await serving.call("GET", "/load", headers=HEADERS)).json()
    assert load == {"server_load": 2, "queued_tokens": num_prompt, "usage": 0.0}
    serving.engine.step()
    load = (await serving.call("GET", "/load", headers=HEADERS)).json()
    assert load == {"server_load": 2, "queued_tokens": 0, "usage": 2 / INFO.max_num_seqs}
    while serving.engine.step():
        await asyncio.sleep(0)
    await asyncio.gather(*asked)
