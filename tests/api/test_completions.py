"""/v1/completions: texts and token ids continued; its own shapes of logprobs, echo and streams."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from glimt.api.completions_schema import MAX_PROMPTS
from tests.support.http_half import EOS, INFO, MODEL, Reply, Serving, spoken
from tests.support.prompts import tokenizer

openai = pytest.importorskip("openai")

IDS = tokenizer().encode_text("one two")


def sdk(address: str) -> Any:
    return openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none")


async def complete(serving: Serving, **fields: Any) -> Reply:
    request = {"model": MODEL, "prompt": "say", "max_tokens": 64, **fields}
    body = json.dumps({k: v for k, v in request.items() if v is not ...}).encode()
    return await serving.ask("POST", "/v1/completions", body=body)


def submitted(serving: Serving) -> list[list[int]]:
    return [np.frombuffer(each.token_ids, np.int32).tolist() for each in serving.engine.submits]


async def test_the_official_client_completes_a_text() -> None:
    serving = Serving(spoken(" the word"))
    async with serving.listening() as address, sdk(address) as client:
        answer = await client.completions.create(model=MODEL, prompt="say", logprobs=2)
        stream = await client.completions.create(
            model=MODEL, prompt="say", stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.choices[0].text == " the word"
    assert answer.choices[0].finish_reason == "stop"
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens[:-1]) == " the word"
    assert logprobs.text_offset[1] == len(logprobs.tokens[0])
    assert all(2 <= len(top) <= 3 for top in logprobs.top_logprobs)
    assert logprobs.token_logprobs[0] == -0.5
    assert "".join(c.choices[0].text for c in chunks if c.choices) == " the word"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == answer.usage
    assert chunks[-1].choices == []


async def test_without_a_length_sixteen_tokens_come_as_from_openai() -> None:
    serving = Serving(spoken("word " * 100))
    answer = (await complete(serving, max_tokens=...)).json()
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_and_choices_are_numbered_prompt_by_prompt(stream: bool) -> None:
    texts = ["a b", "c", "d e f", "g", "h", "i j"]
    serving = Serving(*map(spoken, texts))
    reply = await complete(serving, prompt=["x", "y y", "z"], n=2, stream=stream)
    pieces = (
        [c for event in reply.events[:-1] for c in event["choices"]]
        if stream
        else (reply.json()["choices"])
    )
    by_index = {i: "".join(p["text"] for p in pieces if p["index"] == i) for i in range(6)}
    assert list(by_index.values()) == texts
    assert [p["finish_reason"] for p in pieces].count("stop") == 6
    if not stream:
        usage = reply.json()["usage"]
        assert usage["prompt_tokens"] == sum(len(ids) for ids in submitted(serving)[::2])
        assert usage["completion_tokens"] == sum(len(answer) for answer in serving.answers)


async def test_prompts_are_submitted_as_they_are() -> None:
    serving = Serving()
    await complete(serving, prompt=IDS)
    await complete(serving, prompt=[IDS, [EOS]])
    await complete(serving, prompt="one two", add_special_tokens=False)
    await complete(serving, prompt="one two")
    special = [tokenizer().control_tokens[text] for text in ("[gMASK]", "<sop>")]
    assert submitted(serving) == [IDS, IDS, [EOS], IDS, [*special, *IDS]]


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_puts_the_prompt_before_the_answer(stream: bool) -> None:
    for prompt, text in (("say:", "say:"), (IDS, "one two")):
        serving = Serving(spoken(" yes"))
        reply = await complete(serving, prompt=prompt, echo=True, stream=stream, n=2)
        events = reply.events[:-1] if stream else [reply.json()]
        pieces = [choice for event in events for choice in event["choices"]]
        for index in range(2):
            shown = "".join(p["text"] for p in pieces if p["index"] == index)
            assert shown == f"{text} yes"


async def test_echo_alone_generates_nothing_to_see() -> None:
    answer = (await complete(Serving(), prompt="only this", echo=True, max_tokens=0)).json()
    assert answer["choices"][0]["text"] == "only this"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_echoed_logprobs_are_those_of_the_prompt_and_then_of_the_answer(stream: bool) -> None:
    for prompt, num_hidden in ((IDS, 0), ("one two", 2)):
        serving = Serving(spoken("yes"))
        reply = await complete(serving, echo=True, logprobs=1, stream=stream, prompt=prompt)
        pieces = [e["choices"][0] for e in reply.events[:-1]] if stream else reply.json()["choices"]
        lists = [piece["logprobs"] for piece in pieces if piece["logprobs"]]
        whole = {key: [each for one in lists for each in one[key]] for key in lists[0]}
        num_prompt = len(IDS) + num_hidden
        assert whole["token_logprobs"][0] is None
        assert whole["top_logprobs"][0] is None
        assert whole["token_logprobs"][1:num_prompt] == [-1.5] * (num_prompt - 1)
        assert whole["token_logprobs"][num_prompt:] == [-0.5] * len(serving.answers[0])
        assert "".join(whole["tokens"][num_hidden:-1]) == "one twoyes"
        text = "".join(piece["text"] for piece in pieces)
        for token, offset in list(zip(whole["tokens"], whole["text_offset"], strict=True))[
            num_hidden:-1
        ]:
            assert text[offset:].startswith(token)
        assert {len(top) for top in whole["top_logprobs"][1:num_prompt]} <= {1, 2}


async def test_only_the_prompt_is_judged_with_a_length_of_none() -> None:
    prompts = [IDS, IDS[:1]]
    reply = await complete(Serving(), echo=True, max_tokens=0, logprobs=0, prompt=prompts)
    first, second = reply.json()["choices"]
    assert first["logprobs"]["token_logprobs"] == [None] + [-1.5] * (len(IDS) - 1)
    assert second["logprobs"]["token_logprobs"] == [None]


async def test_prompt_logprobs_have_vllms_shape_in_both_routes() -> None:
    serving = Serving()
    completed = (await complete(serving, prompt=IDS, prompt_logprobs=1)).json()["choices"][0]
    chat = (await serving.chat(prompt_logprobs=0)).json()
    assert len(completed["prompt_logprobs"]) == len(IDS)
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    for shown in (completed, chat):
        assert shown["prompt_logprobs"][0] is None
    judged = completed["prompt_logprobs"][1]
    assert judged[str(IDS[1])] == {
        "logprob": -1.5,
        "rank": 2,
        "decoded_token": tokenizer().token_text(IDS[1]),
    }
    assert judged["0"]["rank"] == 1
    assert "prompt_logprobs" not in (await serving.chat()).json()


async def test_a_stop_string_ends_a_completion_and_thoughts_are_plain_text() -> None:
    serving = Serving(spoken("<think>a</think>b STOP c"), parse_reasoning=True)
    choice = (await complete(serving, stop=" STOP")).json()["choices"][0]
    assert choice["text"] == "<think>a</think>b"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", " STOP")


async def test_token_ids_are_shown_when_asked_for() -> None:
    serving = Serving(spoken("yes"))
    fields: dict[str, Any] = {"return_token_ids": True, "prompt": IDS}
    choice = (await complete(serving, **fields)).json()["choices"][0]
    assert choice["prompt_token_ids"] == IDS
    assert choice["token_ids"] == serving.answers[0]
    reply = await complete(
        serving, stream=True, return_tokens_as_token_ids=True, logprobs=0, **fields
    )
    pieces = [event["choices"][0] for event in reply.events[:-1]]
    assert [each for piece in pieces for each in piece["token_ids"]] == serving.answers[0]
    assert pieces[0]["logprobs"]["tokens"] == [f"token_id:{serving.answers[0][0]}"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ...}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [INFO.vocab_size + 10**6]}, "prompt"),
        ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, "prompt"),
        ({"prompt": "a" * 4000}, "prompt"),
        ({"prompt": [5] * 500}, "max_tokens"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"messages": []}, None),
    ],
)
async def test_what_cannot_be_completed_says_why(fields: Any, param: str | None) -> None:
    reply = await complete(Serving(), **fields)
    if param is None:
        assert reply.headers["x-glimt-ignored-fields"] == "messages"
    else:
        assert (reply.status, reply.error["param"]) == (400, param)


async def test_when_one_prompt_fails_all_end_and_nothing_stays() -> None:
    serving = Serving(spoken("word " * 50))
    for stream in (False, True):

        async def fail_one() -> None:
            while len(serving.engine.running) < 3:
                await asyncio.sleep(0)
            serving.engine.fail(next(iter(serving.engine.running)), "step_failed", "it failed")

        failing = asyncio.create_task(fail_one())
        reply = await complete(serving, prompt=["a", "b", "c"], stream=stream)
        await failing
        if stream and reply.status == 200:
            assert reply.events[-2]["error"]["code"] == "step_failed"
        else:
            assert (reply.status, reply.error["code"]) == (500, "step_failed")
        serving.engine.step()
        assert serving.client.num_open == 0


async def test_a_full_server_takes_all_prompts_or_none() -> None:
    serving = Serving(max_waiting=0)
    reply = await complete(serving, prompt=["a"] * (INFO.max_num_seqs + 1))
    assert reply.status == 429
    assert not serving.engine.submits
    assert (await complete(serving, prompt=["a"] * INFO.max_num_seqs)).status == 200
