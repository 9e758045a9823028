"""Bodies and fields that nobody should send: each is judged at once, and names its field."""

import json
import math
from typing import Any

import pytest

from tests.support.hostile import LITTLE_WORK_S, Canary, ask, chat_body
from tests.support.serving import Serving

GOOD = json.dumps(chat_body()).encode()


@pytest.fixture(scope="module")
def canary(serving: Serving) -> Canary:
    return Canary(serving)


def field(text: bytes) -> bytes:
    return GOOD[:-1] + b"," + text + b"}"


BODIES: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("null", b"null"),
    ("a list", b"[]"),
    ("a string", b'"x"'),
    ("an empty object", b"{}"),
    ("cut", GOOD[:-3]),
    ("trailing bytes", GOOD + b" x"),
    ("byte order mark", b"\xef\xbb\xbf" + GOOD),
    ("UTF-16", GOOD.decode().encode("utf-16")),
    ("invalid UTF-8", GOOD.replace(b"hi", b"\xff\xfe")),
    ("100,000 brackets", b"[" * 100_000),
    ("1,000 levels", field(b'"x":' + b'{"a":' * 1000 + b"1" + b"}" * 1000)),
    ("lone surrogate", GOOD.replace(b"hi", b"\\ud800")),
    ("equal keys", field(b'"n":1,"n":1')),
    ("equal keys in disguise", field(b'"n":1,"\\u006e":1')),
    ("NaN", field(b'"temperature":NaN')),
    ("Infinity", field(b'"top_p":Infinity')),
    ("-Infinity", field(b'"logit_bias":{"1":-Infinity}')),
    ("1e999", field(b'"presence_penalty":1e999')),
    ("5,000 digits", field(b'"seed":' + b"9" * 5000)),
]


@pytest.mark.parametrize("body", [x[1] for x in BODIES], ids=[x[0] for x in BODIES])
def test_a_body_that_is_not_the_json_meant_is_a_400(
    serving: Serving, canary: Canary, body: bytes
) -> None:
    assert ask(serving, body).status == 400
    canary.sings()


def said(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"n": True}, "n"),
    ({"n": "3"}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": 10**9}, "n"),
    ({"temperature": "nan"}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 1e30}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 10**12}, "top_k"),
    ({"min_p": -1}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 1e38}, "repetition_penalty"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": [1]}, "frequency_penalty"),
    ({"seed": 2**63}, "seed"),
    ({"best_of": 10**9}, "best_of"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"640": 1}}, "logit_bias"),
    ({"logit_bias": {"abc": 1}}, "logit_bias"),
    ({"logit_bias": {"\u0663": 1}}, "logit_bias"),
    ({"logit_bias": {"1" * 21: 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": "a" * 10**6}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": [[]]}, "stop[0]"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"max_tokens": [1]}, "max_tokens"),
    ({"max_completion_tokens": 4}, "max_tokens"),
    ({"max_tokens": 4090}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 3}, "min_tokens"),
    ({"min_tokens": 10**12}, "min_tokens"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]"),
    ({"allowed_token_ids": [1, 640]}, "allowed_token_ids[1]"),
    ({"allowed_token_ids": list(range(10**6))}, "allowed_token_ids"),
    ({"bad_words": ["a"] * 10_000}, "bad_words"),
    ({"bad_words": [""]}, "bad_words[0]"),
    ({"bad_words": ["a" * 10**6]}, "bad_words[0]"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [10**12]}, "stop_token_ids[0]"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"cache_salt": "a\0b"}, "cache_salt"),
    ({"model": ["tiny"]}, "model"),
    ({"model": "x" * 10**6}, "model"),
    ({"messages": ...}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": "a"}] * 100_000}, "messages"),
    ({"messages": [{"content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "root", "content": "a"}]}, "messages[0].role"),
    (said(5), "messages[0].content"),
    (said(None), "messages[0].content"),
    (said([None]), "messages[0].content[0]"),
    (said([[]]), "messages[0].content[0]"),
    (said([{"type": "zzz"}]), "messages[0].content[0].type"),
    (said([{"text": "x"}]), "messages[0].content[0].type"),
    (said([{"type": "text"}]), "messages[0].content[0].text"),
    (said([{"type": "image_url"}]), "messages[0].content[0].image_url"),
    (said([{"type": "image_url", "image_url": None}]), "messages[0].content[0].image_url"),
    (said([{"type": "image_url", "image_url": {}}]), "messages[0].content[0].image_url.url"),
    (said([{"type": "image_embeds", "image_embeds": ""}]), "messages[0].content[0].type"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": "x"}}, "stream_options.include_usage"),
    ({"priority": 10**20}, "priority"),
    ({"user": "a" * 10**6}, "user"),
    ({"metadata": {str(i): "" for i in range(1000)}}, "metadata"),
    ({"prompt_embeds": ["x"]}, "prompt_embeds"),
    ({"kv_transfer_params": {"x": 1}}, "kv_transfer_params"),
    ({"custom_logit_processor": "x"}, "custom_logit_processor"),
    ({"mm_processor_kwargs": {"size": 10**9}}, "mm_processor_kwargs"),
    ({"media_io_kwargs": {"video": {"fps": 1e9}}}, "media_io_kwargs"),
    ({"thinking_token_budget": -1}, "thinking_token_budget"),
    ({"reasoning_effort": "ultra"}, "reasoning_effort"),
    ({"chat_template": "{% for i in range(10**9) %}{% endfor %}"}, "chat_template"),
    ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs.tokenize"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    (
        {"chat_template_kwargs": {"add_generation_prompt": False}},
        "chat_template_kwargs.add_generation_prompt",
    ),
    (
        {"chat_template_kwargs": {"enable_thinking": "yes"}},
        "chat_template_kwargs.enable_thinking",
    ),
]


def name_of(case: tuple[dict[str, Any], str]) -> str:
    name, value = next(iter(case[0].items()))
    return f"{name}={value!r}"[:40]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=map(name_of, WRONG))
def test_a_wrong_field_is_a_400_that_names_it(
    serving: Serving, fields: dict[str, Any], param: str
) -> None:
    reply = ask(serving, chat_body(**fields))
    assert reply.status == 400
    assert str(reply.error["param"]).startswith(param)


RIGHT: list[dict[str, Any]] = [
    {"seed": 2**63 - 1},
    {"seed": -(2**63)},
    {"temperature": 1e-300, "top_p": 1e-300},
    {"temperature": 100, "top_k": 2**31 - 1, "min_p": 1},
    {"repetition_penalty": 5e-324},
    {"repetition_penalty": 100},
    {"n": 16, "temperature": 1},
    {"logprobs": True, "top_logprobs": 20, "temperature": 1, "top_p": 0.01},
    {"logprobs": True, "top_logprobs": 20, "allowed_token_ids": [5]},
    {"logit_bias": {str(i): -100 for i in range(300)}},
    {"stop": []},
    {"stop": ["<|user|>", "\0", "\u200d"]},
    {"min_tokens": 2, "stop_token_ids": list(range(64))},
    {"allowed_token_ids": [3], "bad_words": ["a", " ", "\u0301"]},
    {"bad_words": ["ab" * 128] + [f"{i} " * 20 for i in range(127)]},
    {"model": None},
    said(""),
    said([]),
    said("a\0b"),
    said("\U0001f600"),
    said("{{7*7}}{% raw %}{{"),
    said("<|image|><|begin_of_image|><|image|><|end_of_image|><|video|></think>/nothink"),
    said([{"type": "text", "text": "<|ima"}, {"type": "text", "text": "ge|>"}]),
    said("\ue000\uf8ff\U000f0000\U0010fffd"),
    said("![x](http://127.0.0.1:1/x.png)"),
    {"messages": [{"role": role, "content": "<|user|>"} for role in ("system", "assistant")]},
    {"chat_template_kwargs": {"enable_thinking": False}},
]


def shows(fields: dict[str, Any]) -> str:
    return str(fields)[:50]


@pytest.mark.parametrize("fields", RIGHT, ids=map(shows, RIGHT))
def test_what_is_odd_but_right_is_answered(
    serving: Serving, canary: Canary, fields: dict[str, Any]
) -> None:
    reply = ask(serving, chat_body(**fields))
    assert reply.status == 200
    for choice in reply.json["choices"]:
        assert choice["finish_reason"] in ("stop", "length")
        for token in (choice["logprobs"] or {"content": []})["content"]:
            assert math.isfinite(token["logprob"])
    canary.sings()


def test_an_unknown_model_is_a_404_shown_without_its_line_breaks(serving: Serving) -> None:
    reply = ask(serving, chat_body(model="x\nERROR fake \x1b[31m\u2028z"))
    assert (reply.status, reply.error["param"]) == (404, "model")
    assert "\n" not in reply.error["message"]
    assert "fake" not in serving.log.read_text()


HUGE = 8 * 2**20 - 4096
LONG_TEXTS = {
    "letters": "a" * HUGE,
    "spaces": " " * HUGE,
    "accents": "\u0301" * (HUGE // 2),
    "joiners": "\U0001f468\u200d" * (HUGE // 7),
    "digits": "1" * HUGE,
    "control strings": "<|user|>" * (HUGE // 8),
    "private characters": "\ue000" * (HUGE // 3),
    "opening signs": "<" * HUGE,
}


@pytest.mark.parametrize("text", LONG_TEXTS.values(), ids=LONG_TEXTS)
def test_megabytes_of_text_are_refused_with_so_little_work_that_nobody_is_held_up(
    serving: Serving, canary: Canary, text: str
) -> None:
    body = json.dumps(chat_body(**said(text)), ensure_ascii=False).encode()
    before_s = canary.work_s()
    reply = ask(serving, body)
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert canary.work_s() - before_s < LITTLE_WORK_S
    canary.sings()
