"""Each field of a chat request does what it says on a running server, or is refused by its name."""

import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from tests.e2e.test_server import data_url, picture
from tests.support.media import grey_clip
from tests.support.serving import Serving

GREEDY = {"temperature": 0, "ignore_eos": True, "max_tokens": 8, "return_token_ids": True}
SAID = [{"role": "user", "content": "hi"}]
FREE = {"temperature": 1.5, "top_k": 0, "top_p": 1}  # the checkpoint's own is top_k 1

Ask = Callable[..., Any]


@pytest.fixture
async def ask(serving: Serving) -> Any:
    """Asks for a chat answer and gives it, or the error of a refusal."""
    async with aiohttp.ClientSession(serving.url, headers={"Authorization": "Bearer root"}) as http:

        async def one(path: str = "/v1/chat/completions", **fields: Any) -> Any:
            body = {"messages": SAID, **GREEDY, **fields}
            async with http.post(path, json=body) as reply:
                assert reply.status in (200, 400), await reply.text()
                if body.get("stream") and reply.status == 200:
                    lines = (await reply.text()).split("\n\n")
                    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
                answer = await reply.json()
                answer["ignored"] = reply.headers.get("x-glimt-ignored-fields")
                return answer

        yield one


def ids(answer: Any, choice: int = 0) -> list[int]:
    return answer["choices"][choice]["token_ids"]  # type: ignore[no-any-return]


def text(answer: Any) -> str:
    return answer["choices"][0]["message"]["content"]  # type: ignore[no-any-return]


async def test_a_seed_repeats_an_answer_and_choices_of_one_request_differ(ask: Ask) -> None:
    first, again = [await ask(seed=5, n=3, **FREE) for _ in range(2)]
    assert [ids(first, n) for n in range(3)] == [ids(again, n) for n in range(3)]
    assert ids(first, 0) != ids(first, 1)
    assert ids(await ask(seed=6, **FREE)) != ids(first)
    assert (await ask(n=2))["error"]["param"] == "n"  # greedy ones would be the same


@pytest.mark.parametrize("limit", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}, {"temperature": 0}])
async def test_each_way_to_leave_one_token_to_draw_from_is_greedy(ask: Ask, limit: Any) -> None:
    assert ids(await ask(**{**FREE, "seed": 3, **limit})) == ids(await ask())


async def test_penalties_and_biases_move_tokens(ask: Ask) -> None:
    plain = ids(await ask(max_tokens=32))
    assert len(set(plain)) < 32
    assert len(set(ids(await ask(max_tokens=32, repetition_penalty=100)))) == 32
    twice = len(set(ids(await ask(max_tokens=32, presence_penalty=2, frequency_penalty=2))))
    assert twice > len(set(plain))
    assert plain[0] not in ids(await ask(logit_bias={str(plain[0]): -100}))
    first = (await ask(max_tokens=1))["choices"][0]["message"]["content"]
    assert text(await ask(max_tokens=1, bad_words=[first])) != first
    only = await ask(allowed_token_ids=[300, 301])
    assert set(ids(only)) <= {300, 301}


async def test_lengths_and_ends(ask: Ask) -> None:
    plain = await ask()
    third = ids(plain)[2]
    assert ids(await ask(stop_token_ids=[third]))[-1] == third
    later = await ask(stop_token_ids=[ids(plain)[0]], min_tokens=4)
    assert len(ids(later)) >= 4
    word = text(plain)[1:3]
    stopped = await ask(stop=[word])
    assert stopped["choices"][0]["stop_reason"] == word
    assert word not in text(stopped)
    assert text(await ask(stop=[word], include_stop_str_in_output=True)).endswith(word)
    assert len(ids(await ask(max_tokens=None, max_completion_tokens=3))) == 3
    looped = await ask(
        max_tokens=64,
        allowed_token_ids=[300],
        repetition_detection={"max_pattern_size": 4, "min_count": 5},
    )
    assert looped["choices"][0]["finish_reason"] == "repetition"
    assert len(ids(looped)) < 64


async def test_probabilities_and_tokens_are_shown(ask: Ask) -> None:
    shown = await ask(logprobs=True, top_logprobs=3, return_tokens_as_token_ids=True)
    content = shown["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in content] == [f"token_id:{i}" for i in ids(shown)]
    assert all(len(each["top_logprobs"]) == 3 for each in content)
    assert all(each["logprob"] == each["top_logprobs"][0]["logprob"] for each in content)
    judged = await ask(prompt_logprobs=1)
    assert len(judged["prompt_logprobs"]) == len(judged["prompt_token_ids"])
    assert judged["prompt_logprobs"][0] is None


async def test_streams_count_as_they_are_asked_to(ask: Ask) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await ask(stream=True, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 8
    assert chunks[-1]["choices"] == []
    plain = await ask(stream=True)
    assert all(not chunk.get("usage") for chunk in plain)
    assert plain[0]["choices"][0]["delta"]["role"] == "assistant"


async def test_prompts_are_made_as_asked(ask: Ask) -> None:
    async def prompt(**fields: Any) -> Any:
        return await ask("/v1/chat/completions/render", **fields)

    assert (await prompt(chat_template_kwargs={"enable_thinking": False}))["prompt"].endswith(
        "/nothink<|assistant|>\n<think></think>\n"
    )
    assert not (await prompt(add_generation_prompt=False))["prompt"].endswith("<|assistant|>\n")
    begun = [*SAID, {"role": "assistant", "content": "So"}]
    assert (await prompt(messages=begun, continue_final_message=True))["prompt"].endswith("So")
    assert text(await ask(messages=begun, continue_final_message=True, echo=True)).startswith("So")
    long = [{"role": "user", "content": "word " * 50}]
    cut = await prompt(messages=long, truncate_prompt_tokens=9)
    assert cut["num_tokens"] == 9
    look = {"type": "function", "function": {"name": "look"}}
    assert "look" in (await prompt(tools=[look]))["prompt"]


async def test_media_are_made_as_asked(ask: Ask) -> None:
    url = data_url(picture(640, 480))
    still = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    clip = data_url(grey_clip(60, 64, 96), "video/mp4")
    video = [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": clip}}]}]

    async def count(messages: Any, **fields: Any) -> int:
        answer = await ask("/v1/chat/completions/render", messages=messages, **fields)
        return answer["num_tokens"]  # type: ignore[no-any-return]

    whole = await count(still)
    assert await count(still, mm_processor_kwargs={"size": {"longest_edge": 25_088}}) < whole
    small = await count(still, mm_processor_kwargs={"max_pixels": 12_544})
    assert small == await count(still, mm_processor_kwargs={"size": {"longest_edge": 25_088}})
    assert await count(video, mm_processor_kwargs={"fps": 1}) < await count(video)
    few = await count(video, media_io_kwargs={"video": {"max_frames": 2}})
    assert few < await count(video)
    assert few == await count(video, media_io_kwargs={"video": {"num_frames": 2}})


async def test_a_salt_separates_and_a_repeated_prompt_is_found(ask: Ask) -> None:
    long = [{"role": "user", "content": "several words to be found again " * 8}]

    async def cached(**fields: Any) -> int:
        usage = (await ask(messages=long, **fields))["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]  # type: ignore[no-any-return]

    await cached()
    assert await cached() > 0
    assert await cached(cache_salt="mine") == 0
    assert await cached(cache_salt="mine") > 0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.1}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"n": 0}, "n"),
    ({"stop": [""]}, "stop"),
    ({"min_tokens": 9}, "min_tokens"),
    ({"logit_bias": {"100000": 1}}, "logit_bias"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs"),
    ({"response_format": {"type": "structural_tag"}}, "response_format"),
    ({"tools": []}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"chat_template_kwargs": {"tone": "kind"}}, "chat_template_kwargs.tone"),
    ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
    ({"documents": [{"text": "a"}]}, "documents"),
    ({"add_special_tokens": True}, "add_special_tokens"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"kv_transfer_params": {}}, "kv_transfer_params"),
    ({"vllm_xargs": {"a": 1}}, "vllm_xargs"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"length_penalty": 0.5}, "length_penalty"),
    ({"thinking_token_budget": -1}, "thinking_token_budget"),
    ({"mm_processor_kwargs": {"fps": 100}}, "mm_processor_kwargs.fps"),
    ({"media_io_kwargs": {"video": {"num_frames": 999}}}, "media_io_kwargs.video.num_frames"),
]


@pytest.mark.parametrize(("fields", "path"), REFUSED, ids=[path for _, path in REFUSED])
async def test_what_cannot_be_is_refused_with_its_path(ask: Ask, fields: Any, path: str) -> None:
    error = (await ask(**fields))["error"]
    assert (error["param"] or "").startswith(path), error
    assert path.split(".")[-1] in error["message"] + error["param"]


async def test_what_does_nothing_is_said(ask: Ask) -> None:
    answer = await ask(priority=3, temprature=1, spaces_between_special_tokens=True)
    assert set(answer["ignored"].split(",")) == {
        "priority",
        "temprature",
        "spaces_between_special_tokens",
    }
    silent = await ask(user="me", request_id="mine", spaces_between_special_tokens=False)
    assert silent["ignored"] is None
