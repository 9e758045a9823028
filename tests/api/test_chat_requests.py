"""What a chat request may say. The numbers in the ids are those of the list of hostile requests."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.api import schema
from glimt.api.body import MAX_DEPTH, decode_body
from glimt.api.schema import ChatRequest
from glimt.errors import InvalidRequest
from tests.support.http_half import EOS, INFO, MODEL, USER, Serving, chat_body
from tests.support.prompts import renderer, tokenizer

DECODER = msgspec.json.Decoder(ChatRequest)
TEXT = [{"type": "text", "text": "hi"}]


def raw(field: str) -> bytes:
    """A small request with one more field as it is written."""
    return chat_body()[:-1] + b"," + field.encode() + b"}"


BAD_BODIES = {
    "J01 empty": b"",
    "J01 null": b"null",
    "J01 list": b"[]",
    "J01 string": b'"x"',
    "J01 no fields": b"{}",
    "J02 truncated": chat_body()[:-1],
    "J02 trailing": chat_body() + b"x",
    "J02 BOM": b"\xef\xbb\xbf" + chat_body(),
    "J02 UTF-16": chat_body().decode().encode("utf-16"),
    "J02 invalid UTF-8": chat_body(user="?").replace(b"?", b"\xff"),
    "J03 brackets": b"[" * 100_000,
    "J03 deep": raw('"other":' + '{"a":' * 1000 + "1" + "}" * 1000),
    "J03 just too deep": raw('"other":' + "[" * MAX_DEPTH + "]" * MAX_DEPTH),
    "J04 high surrogate": raw('"user":"\\ud800"'),
    "J04 low surrogate": raw('"user":"\\udc00"'),
    "J05 duplicate": raw('"n":1,"n":1'),
    "J05 escaped duplicate": raw('"n":1,"\\u006e":1'),
    "J05 nested duplicate": raw('"stream_options":{"a":1,"a":2}'),
    "J06 NaN": raw('"temperature":NaN'),
    "J06 Infinity": raw('"top_p":Infinity'),
    "J06 -Infinity": raw('"presence_penalty":-Infinity'),
    "J06 1e999": raw('"temperature":1e999'),
    "J06 bias": raw('"logit_bias":{"5":1e999}'),
    "J08 long integer": raw('"seed":' + "1" * 5000),
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_body_that_is_no_request_is_a_400(name: str) -> None:
    serving = Serving()
    reply = await serving.ask(body=BAD_BODIES[name])
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert not serving.engine.submits
    assert "Error" not in reply.error["message"]


# (fields, path of the error, or None where another field is named)
BAD_FIELDS: list[tuple[str, dict[str, Any], str | None]] = [
    ("J07 n true", {"n": True}, "n"),
    ("J07 n text", {"n": "3"}, "n"),
    ("J07 n 1.5", {"n": 1.5}, "n"),
    ("J07 temperature nan", {"temperature": "nan"}, "temperature"),
    ("J07 max_tokens list", {"max_tokens": [1]}, "max_tokens"),
    ("J08 seed high", {"seed": 2**63}, "seed"),
    ("J08 seed low", {"seed": -(2**63) - 1}, "seed"),
    ("J09 temperature low", {"temperature": -0.1}, "temperature"),
    ("J09 temperature high", {"temperature": 1e30}, "temperature"),
    ("J10 top_p 0", {"top_p": 0}, "top_p"),
    ("J10 top_p 1.1", {"top_p": 1.1}, "top_p"),
    ("J10 top_k -2", {"top_k": -2}, "top_k"),
    ("J10 top_k 10^12", {"top_k": 10**12}, "top_k"),
    ("J10 min_p -1", {"min_p": -1}, "min_p"),
    ("J10 min_p 2", {"min_p": 2}, "min_p"),
    ("J11 repetition 0", {"repetition_penalty": 0}, "repetition_penalty"),
    ("J11 repetition -1", {"repetition_penalty": -1}, "repetition_penalty"),
    ("J11 repetition 1e38", {"repetition_penalty": 1e38}, "repetition_penalty"),
    ("J11 repetition x", {"repetition_penalty": "x"}, "repetition_penalty"),
    ("J12 presence", {"presence_penalty": 2.1}, "presence_penalty"),
    ("J12 frequency", {"frequency_penalty": -2.1}, "frequency_penalty"),
    ("J12 list", {"frequency_penalty": [1]}, "frequency_penalty"),
    *[(f"J13 n {n}", {"n": n}, "n") for n in (0, -1, 17, 16384, 10**9)],
    ("n of greedy answers", {"n": 2, "temperature": 0}, "n"),
    ("J14 best_of", {"best_of": 10**9}, "best_of"),
    ("J14 beams", {"use_beam_search": True}, "use_beam_search"),
    ("J15 top 21", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ("J15 top -1", {"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ("J15 top alone", {"top_logprobs": 2}, "top_logprobs"),
    ("J16 prompt_logprobs", {"prompt_logprobs": 21}, "prompt_logprobs"),
    ("J16 streamed", {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ("J17 many", {"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
    *[
        (f"J17 key {key[:6]}", {"logit_bias": {key: 1}}, "logit_bias")
        for key in ("-1", str(INFO.vocab_size), "abc", str(10**20), "²", "")
    ],
    ("J17 value", {"logit_bias": {"5": 101}}, "logit_bias[...]"),
    ("J18 17 stops", {"stop": ["x"] * 17}, "stop"),
    ("J18 long stop", {"stop": "x" * 2**20}, "stop"),
    ("J18 empty stop", {"stop": ""}, "stop"),
    ("J18 empty stop in list", {"stop": [""]}, "stop[0]"),
    ("J18 number", {"stop": [1]}, "stop[0]"),
    ("J18 list", {"stop": [[]]}, "stop[0]"),
    ("J19 max_tokens 0", {"max_tokens": 0}, "max_tokens"),
    ("J19 max_tokens -1", {"max_tokens": -1}, "max_tokens"),
    ("J19 max_tokens 10^9", {"max_tokens": 10**9}, "max_tokens"),
    ("J19 differ", {"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ("J21 min_tokens -1", {"min_tokens": -1}, "min_tokens"),
    ("J21 min_tokens > max", {"min_tokens": 65}, "min_tokens"),
    ("J21 min_tokens 10^12", {"min_tokens": 10**12}, "min_tokens"),
    ("J21 min_tokens x", {"min_tokens": "x"}, "min_tokens"),
    ("J22 no ids", {"allowed_token_ids": []}, "allowed_token_ids"),
    ("J22 -1", {"allowed_token_ids": [-1]}, "allowed_token_ids[0]"),
    ("J22 vocab", {"allowed_token_ids": [1, INFO.vocab_size]}, "allowed_token_ids[1]"),
    ("J22 10^12", {"allowed_token_ids": [10**12]}, "allowed_token_ids[0]"),
    ("J22 10^6 ids", {"allowed_token_ids": [1] * 10**6}, "allowed_token_ids"),
    ("J23 many", {"bad_words": ["x"] * 10_000}, "bad_words"),
    ("J23 empty", {"bad_words": [""]}, "bad_words[0]"),
    ("J23 long", {"bad_words": ["x" * 2**20]}, "bad_words[0]"),
    ("J24 -1", {"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ("J24 10^12", {"stop_token_ids": [10**12]}, "stop_token_ids[0]"),
    ("J24 vocab", {"stop_token_ids": [INFO.vocab_size]}, "stop_token_ids[0]"),
    ("J25 logprob ids", {"logprob_token_ids": [1] * 129}, "logprob_token_ids"),
    ("J26 empty salt", {"cache_salt": ""}, "cache_salt"),
    ("J26 long salt", {"cache_salt": "x" * 2**20}, "cache_salt"),
    ("J26 number", {"cache_salt": 5}, "cache_salt"),
    ("J26 NUL", {"cache_salt": "a\0b"}, "cache_salt"),
    ("J27 list", {"model": ["a"]}, "model"),
    ("J27 long", {"model": "x" * 2**20}, "model"),
    ("J28 no messages", {"messages": []}, "messages"),
    ("J28 100,000 messages", {"messages": [{"role": "user", "content": ""}] * 10**5}, "messages"),
    ("J28 role", {"messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
    ("J28 content 5", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ("J28 null", {"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    *[
        (f"J29 part {i}", {"messages": [{"role": "user", "content": [part]}]}, None)
        for i, part in enumerate(
            [{"type": "hologram"}, {"type": "image_url"}, {"text": "x"}, None, [[]], {"type": 5}]
        )
    ],
    ("J30 stream", {"stream": "yes"}, "stream"),
    ("J30 options alone", {"stream_options": {"include_usage": True}}, "stream_options"),
    (
        "J30 include_usage",
        {"stream": True, "stream_options": {"include_usage": "x"}},
        "stream_options.include_usage",
    ),
    (
        "continuous alone",
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        "stream_options.continuous_usage_stats",
    ),
    ("J33 priority", {"priority": 10**20}, "priority"),
    ("J33 user", {"user": "x" * 2**20}, "user"),
    ("J33 metadata", {"metadata": {str(i): "x" for i in range(1000)}}, "metadata"),
    *[
        (f"J34 {name}", {name: {"a": 1}}, name)
        for name in ("prompt_embeds", "kv_transfer_params", "custom_logit_processor", "lora_path")
    ],
    *[
        (
            f"J34 {kind}",
            {"messages": [{"role": "user", "content": [{"type": kind}]}]},
            "messages[0].content[0].type",
        )
        for kind in ("image_embeds", "input_audio", "audio_url", "file")
    ],
    (
        "an image of an earlier uuid",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "uuid": "a"}]}]},
        "messages[0].content[0].image_url",
    ),
    (
        "thoughts of a user",
        {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "a"}]}]},
        "messages[0].content[0]",
    ),
    ("J35 budget", {"thinking_token_budget": -1}, "thinking_token_budget"),
    ("J35 effort", {"reasoning_effort": "ultra"}, "reasoning_effort"),
    ("J36 processor", {"mm_processor_kwargs": {"size": 10**9}}, "mm_processor_kwargs.size"),
    ("J36 io", {"media_io_kwargs": {"video": {"fps": 1e9}}}, "media_io_kwargs.video.fps"),
    (
        "J36 longest",
        {"mm_processor_kwargs": {"size": {"longest_edge": 9_633_793}}},
        "mm_processor_kwargs.size.longest_edge",
    ),
    (
        "no token",
        {"mm_processor_kwargs": {"images_kwargs": {"size": {"longest_edge": 1567}}}},
        "mm_processor_kwargs.images_kwargs.size.longest_edge",
    ),
    (
        "crossed edges",
        {"mm_processor_kwargs": {"size": {"longest_edge": 5000, "shortest_edge": 5001}}},
        "mm_processor_kwargs.size.shortest_edge",
    ),
    (
        "most pixels",
        {"mm_processor_kwargs": {"max_pixels": 4_816_897}},
        "mm_processor_kwargs.max_pixels",
    ),
    (
        "crossed pixels",
        {"mm_processor_kwargs": {"images_kwargs": {"max_pixels": 5000, "min_pixels": 5001}}},
        "mm_processor_kwargs.images_kwargs.min_pixels",
    ),
    ("no pixels", {"mm_processor_kwargs": {"max_pixels": 783}}, "mm_processor_kwargs.max_pixels"),
    (
        "pixels twice",
        {"mm_processor_kwargs": {"max_pixels": 5000, "size": {"longest_edge": 10_000}}},
        "mm_processor_kwargs",
    ),
    (
        "no colour",
        {"media_io_kwargs": {"image": {"rgba_background_color": [0, 0, 256]}}},
        "media_io_kwargs.image.rgba_background_color[2]",
    ),
    ("frames", {"mm_processor_kwargs": {"max_frames": 641}}, "mm_processor_kwargs.max_frames"),
    (
        "number of frames",
        {"media_io_kwargs": {"video": {"num_frames": 641}}},
        "media_io_kwargs.video.num_frames",
    ),
    (
        "no frames",
        {"mm_processor_kwargs": {"videos_kwargs": {"num_frames": 0}}},
        "mm_processor_kwargs.videos_kwargs.num_frames",
    ),
    (
        "number and rate",
        {"media_io_kwargs": {"video": {"num_frames": 8, "fps": 1}}},
        "media_io_kwargs.video.num_frames",
    ),
    ("loop once", {"repetition_detection": {"max_pattern_size": 3, "min_count": 1}}, None),
    (
        "loop sizes",
        {"repetition_detection": {"max_pattern_size": 2, "min_pattern_size": 3, "min_count": 2}},
        "repetition_detection.min_pattern_size",
    ),
    ("cut 0", {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ("cut -2", {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ("cut all", {"truncate_prompt_tokens": INFO.max_model_len}, "truncate_prompt_tokens"),
    ("both ends", {"continue_final_message": True, "add_generation_prompt": True}, None),
    ("continue a user", {"continue_final_message": True}, "continue_final_message"),
    ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ("functions", {"functions": [{"name": "f"}]}, "functions"),
    ("tool_choice", {"tool_choice": "required"}, "tool_choice"),
    ("documents", {"documents": [{}]}, "documents"),
    ("best_of true", {"best_of": True}, "best_of"),
    ("template", {"chat_template": "{{ 1 }}"}, "chat_template"),
    ("template kwargs", {"chat_template_kwargs": {"wild": 1}}, "chat_template_kwargs.wild"),
    (
        "too many images",
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": "data:a"}] * 33}
            ]
        },
        "messages",
    ),
]


@pytest.mark.parametrize(
    ("fields", "param"), [case[1:] for case in BAD_FIELDS], ids=[case[0] for case in BAD_FIELDS]
)
async def test_a_field_that_cannot_be_is_a_400_that_names_it(
    fields: dict[str, Any], param: str | None
) -> None:
    serving = Serving()
    reply = await serving.chat(**fields)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error"), reply.body
    if param is not None:
        assert reply.error["param"] == param
    assert len(reply.body) < 1000
    assert not serving.engine.submits
    assert serving.client.num_preparing == 0


GOOD_FIELDS: dict[str, dict[str, Any]] = {
    "J04 pair": {"messages": [{"role": "user", "content": "\U0001f600"}]},
    "J08 seed": {"seed": 2**63 - 1},
    "J09 greedy": {"temperature": 0},
    "J09 nearly greedy": {"temperature": 1e-300},
    "J09 hot": {"temperature": 2},
    "J13 n 16": {"n": 16, "temperature": 1},
    "J19 null": {"max_tokens": None},
    "J19 same twice": {"max_tokens": 5, "max_completion_tokens": 5},
    "J39 NUL": {"messages": [{"role": "user", "content": "a\0b"}]},
    "integral float": {"temperature": 1},
    "alias": {"model": "alias"},
    "no model": {"model": ...},
    "parts": {"messages": [{"role": "user", "content": TEXT}]},
    "new part names": {
        "messages": [
            {"role": "developer", "content": [{"type": "input_text", "text": "x"}]},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "refusal": "no", "reasoning": "hm"},
            {"role": "user", "content": [{"type": "refusal", "refusal": "x"}]},
        ]
    },
    "nothing asked for": {
        "tools": None,
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "echo": False,
        "best_of": 1,
        "mm_processor_kwargs": {},
        "length_penalty": 1,
        "modalities": ["text"],
    },
    "of no effect": {"user": "u", "metadata": {"a": "b"}, "service_tier": "auto"},
    "unknown": {"surprise": 1},
    "image": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:a", "detail": "low"}},
                    {"type": "video_url", "video_url": {"url": "data:v"}},
                    {"type": "input_image", "image_url": "data:a"},
                ],
            }
        ]
    },
}


@pytest.mark.parametrize("name", GOOD_FIELDS)
async def test_what_may_be_asked_is_answered(name: str) -> None:
    serving = Serving()
    reply = await serving.chat(**GOOD_FIELDS[name])
    assert reply.status == 200, reply.body
    assert reply.json()["choices"][0]["finish_reason"] in ("stop", "length")


async def test_thoughts_among_the_parts_are_those_of_the_answer() -> None:
    thought = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "So."}]
    ask = {"role": "user", "content": "Look."}
    told = []
    for answer in ({"content": thought}, {"content": "So.", "reasoning": "hm"}):
        call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        acted = {"role": "assistant", "tool_calls": [call], **answer}
        serving = Serving()
        result = {"role": "tool", "tool_call_id": "c", "content": "a cat"}
        assert (await serving.chat(messages=[ask, acted, result])).status == 200
        told.append(
            tokenizer().decode(memoryview(serving.engine.submits[0].token_ids).cast("i").tolist())
        )
    assert told[0] == told[1]
    assert "<think>hm</think>" in told[0]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            "what may be: assistant, developer, system, tool, user",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_pil"}]}]},
            "what may be: text, input_text, output_text, refusal, thinking, image_url, input_image,"
            " video_url",
        ),
        ({"tool_choice": "maybe"}, "what may be: auto, none, required"),
        ({"tools": [{"type": "web_search"}]}, "what may be: function"),
        ({"response_format": {"type": "yaml"}}, "json_schema"),
    ],
)
async def test_a_value_that_is_none_of_a_few_is_refused_with_these(fields: Any, told: str) -> None:
    reply = await Serving().chat(**fields)
    assert reply.status == 400
    assert told in reply.error["message"]
    assert "audio" not in reply.error["message"]


async def test_an_unknown_model_is_a_404() -> None:
    for model in ("other", "a\nb"):
        reply = await Serving().chat(model=model)
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert reply.error["param"] == "model"
        assert reply.error["message"].endswith(f"is not served here; there is {MODEL}, alias")


async def test_unknown_fields_are_reported_not_dropped() -> None:
    reply = await Serving().chat(temprature=0.5, **{"bad\nname": 1}, priority=3)
    assert reply.status == 200
    assert reply.headers["x-glimt-ignored-fields"] == "bad?name,temprature,priority"
    reply = await Serving(priority_policy=True).chat(priority=3)
    assert "x-glimt-ignored-fields" not in reply.headers


async def test_a_field_that_is_not_done_says_so() -> None:
    reply = await Serving().chat(documents=[{}])
    assert reply.error == {
        "message": "documents is not supported by this version",
        "type": "invalid_request_error",
        "param": "documents",
        "code": "unsupported",
    }


def test_every_field_that_is_not_done_is_checked() -> None:
    fields = msgspec.structs.fields(ChatRequest)
    not_done = {field.name for field in fields if field.type == schema.NotDone}
    assert not_done == set(schema._HARMLESS)


async def test_the_engine_gets_the_parameters_as_they_were_said() -> None:
    serving = Serving()
    await serving.chat(
        temperature=0.003,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        seed=7,
        stop_token_ids=[5, 6],
        logit_bias={"9": -100},
        allowed_token_ids=[1, 2],
        logprobs=True,
        top_logprobs=3,
        min_tokens=2,
        max_tokens=9,
        frequency_penalty=-1.5,
        repetition_penalty=1.1,
        priority=-4,
        cache_salt="tenant",
    )
    submit = serving.engine.submits[0]
    params = submit.sampling
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.003, 0.5, 0, 0.1)
    assert (params.seed, params.stop_token_ids, params.logit_bias) == (7, (5, 6), {9: -100.0})
    assert (params.allowed_token_ids, params.logprobs) == ((1, 2), 3)
    assert (params.min_tokens, params.max_tokens) == (2, 9)
    assert (params.frequency_penalty, params.repetition_penalty) == (-1.5, 1.1)
    assert params.eos_token_ids == (EOS, USER)
    assert (submit.priority, submit.cache_salt) == (-4, b"tenant")


async def test_the_checkpoints_defaults_fill_what_a_request_leaves_open() -> None:
    defaults = schema_defaults(temperature=0.8, top_k=2, max_new_tokens=20)
    serving = Serving(defaults=defaults)
    await serving.chat(max_tokens=..., top_p=0.3, ignore_eos=True)
    params = serving.engine.submits[0].sampling
    assert (params.temperature, params.top_k, params.top_p) == (0.8, 2, 0.3)
    assert params.max_tokens == 20
    assert params.eos_token_ids == ()


def schema_defaults(**values: Any) -> Any:
    from_file = {"eos_token_id": [EOS, USER], "do_sample": True, **values}
    return Serving().state.defaults.from_generation_config(from_file)


async def test_an_open_length_is_the_rest_of_the_context() -> None:
    serving = Serving()
    await serving.chat(max_tokens=...)
    submit = serving.engine.submits[0]
    assert submit.sampling.max_tokens + len(submit.token_ids) // 4 == INFO.max_model_len


async def test_seeds_are_drawn_where_none_is_given() -> None:
    serving = Serving()
    for seed in (None, -1, 3):
        await serving.chat(seed=seed)
    first, second, third = (submit.sampling.seed for submit in serving.engine.submits)
    assert first != second
    assert third == 3


async def test_bad_words_are_tokenised_with_and_without_a_space() -> None:
    serving = Serving()
    await serving.chat(bad_words=["fox"])
    encode = serving.state.tokenizer.encode_text
    expected = (tuple(encode("fox")), tuple(encode(" fox")))
    assert serving.engine.submits[0].sampling.bad_words == expected


async def test_too_long_names_all_numbers() -> None:
    serving = Serving()
    reply = await serving.chat(max_tokens=INFO.max_model_len)
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert str(INFO.max_model_len) in reply.error["message"]
    assert reply.error["param"] == "max_tokens"
    reply = await serving.chat(messages=[{"role": "user", "content": "x " * 600}])
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    length = len((await prompt_of(serving)).token_ids) // 4
    exact = INFO.max_model_len - length
    assert (await serving.chat(max_tokens=exact)).status == 200
    reply = await serving.chat(max_tokens=exact + 1)
    assert reply.status == 400
    assert f"{INFO.max_model_len + 1}" in reply.error["message"]


async def prompt_of(serving: Serving) -> Any:
    await serving.chat()
    return serving.engine.submits[-1]


async def test_images_count_and_their_leases_go_back_when_the_length_does_not_fit() -> None:
    serving = Serving()
    image = [{"type": "image_url", "image_url": "data:a"}]
    reply = await serving.chat(
        messages=[{"role": "user", "content": image}], max_tokens=INFO.max_model_len - 5
    )
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert [lease.released for lease in serving.media.leases] == [1]


class Pairs(list[tuple[str, Any]]):
    """An object as a list of pairs, which may name a key twice."""


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(
            st.tuples(st.sampled_from(["a", "n", '"', "\\", "é", "a:b{"]), inner), max_size=3
        ).map(Pairs)
    ),
    max_leaves=8,
)


def written(value: Any, escape: bool) -> str:
    if isinstance(value, Pairs):
        inner = (
            f"{json.dumps(key, ensure_ascii=escape)}: {written(each, escape)}"
            for key, each in value
        )
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(each, escape) for each in value) + "]"
    return json.dumps(value, ensure_ascii=escape)


def has_duplicates(value: Any) -> bool:
    if isinstance(value, Pairs):
        keys = [key for key, _ in value]
        return len(set(keys)) < len(keys) or any(has_duplicates(each) for _, each in value)
    return isinstance(value, list) and any(has_duplicates(each) for each in value)


def refusal(body: bytes) -> InvalidRequest | None:
    try:
        decode_body(body, DECODER, schema.KNOWN_FIELDS)
    except InvalidRequest as error:
        return error
    return None


@given(json_values, st.booleans())
def test_exactly_the_bodies_with_a_duplicate_key_are_refused(value: Any, escape: bool) -> None:
    error = refusal(raw('"other":' + written(value, escape)))
    assert (error is not None) == has_duplicates(value)
    assert error is None or "twice" in error.message


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_bytes_do_worse_than_a_typed_error(body: bytes) -> None:
    assert refusal(body) is not None


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_no_value_of_any_field_is_an_internal_error(value: Any) -> None:
    for name in ChatRequest.__struct_fields__:
        body = {"messages": [{"role": "user", "content": "x"}], name: value}
        error = refusal(json.dumps(body).encode())
        assert error is None or (error.param or name).startswith(name)


UNKNOWN = {
    "unheard_of": 1,
    "url": "known elsewhere",
    "stream_options": {"include_usage": True, "interval": 3},
    "logit_bias": {"5": 1},
    "chat_template_kwargs": {"enable_thinking": True},
    "messages": [
        {
            "role": "user",
            "unheard_of": None,
            "cache_control": {"type": "ephemeral"},
            "content": [
                {"type": "text", "text": 'a "quoted\\" text', "url": "x"},
                {"type": "image_url", "image_url": {"url": "data:a", "size": 3}},
                {"type": "image_url", "image_url": "data:a", "detail": "low"},
            ],
        }
    ],
}


async def test_fields_nobody_knows_are_reported_at_every_depth() -> None:
    reply = await Serving().chat(stream=True, **UNKNOWN)
    assert reply.status == 200
    assert reply.headers["x-glimt-ignored-fields"].split(",") == [
        "messages[].cache_control",
        "messages[].content[].detail",
        "messages[].content[].image_url.size",
        "messages[].content[].url",
        "stream_options.interval",
        "unheard_of",
        "url",
    ]


IDLE: dict[str, Any] = {
    "verbosity": "low",
    "service_tier": "auto",  # asks for nothing
    "prompt_cache_key": "k",  # there is nothing to do for it
    "user": "me",
    "messages": [
        {
            "role": "user",
            "name": "Ann",
            "content": [{"type": "image_url", "image_url": {"url": "data:a", "detail": "high"}}],
        }
    ],
}


@pytest.mark.parametrize("strict", [False, True])
async def test_known_fields_that_get_nothing_are_reported_and_never_refused(strict: bool) -> None:
    reply = await Serving(strict_fields=strict).chat(**IDLE)
    assert reply.status == 200
    assert reply.headers["x-glimt-ignored-fields"].split(",") == [
        "messages[].content[].image_url.detail",
        "messages[].name",
        "verbosity",
    ]


@pytest.mark.parametrize(
    ("style", "fields", "ignored"),
    [
        ("4.5", {"enable_thinking": False, "reasoning_effort": "none"}, None),
        ("4.5", {"reasoning_effort": "low"}, "reasoning_effort"),
        ("4.5", {"chat_template_kwargs": {"thinking": False}}, None),
        ("4.1", {"enable_thinking": False}, "enable_thinking"),
        ("4.1", {"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs.thinking"),
        ("4.1", {"reasoning_effort": "none"}, "reasoning_effort"),
        ("4.1", {}, None),
    ],
)
async def test_switches_that_the_template_does_not_read_are_reported(
    style: str, fields: dict[str, Any], ignored: str | None
) -> None:
    serving = Serving(renderer=renderer(style), tokenizer=tokenizer(style))
    reply = await serving.chat(**fields)
    assert reply.status == 200
    assert reply.headers.get("x-glimt-ignored-fields") == ignored


async def test_under_strict_fields_they_are_refused() -> None:
    serving = Serving(strict_fields=True)
    reply = await serving.chat(stream=True, **UNKNOWN)
    assert (reply.status, reply.error["code"]) == (400, "unknown_field")
    assert reply.error["param"] == "messages[].cache_control"
    assert (await serving.chat(unheard_of=None)).status == 200
    assert len(serving.engine.submits) == 1


async def test_a_large_body_is_read_beside_the_loop() -> None:
    address = "data:image/png;base64," + "A" * 2**20
    serving = Serving()
    serving.media.grids[address] = (4, 4)
    content = [{"type": "image_url", "image_url": {"url": address}}]
    reply = await serving.chat(messages=[{"role": "user", "content": content}])
    assert reply.status == 200
    assert reply.json()["model"] == MODEL


async def test_eight_megabytes_of_text_are_refused_and_of_images_not() -> None:
    reply = await Serving().chat(messages=[{"role": "user", "content": "a" * (8 * 2**20)}])
    assert reply.status == 400
    assert "beside its data" in reply.error["message"]
