"""The offline API gives what the server gives, without a server."""

import base64
import gc
import json
import os
import re
import runpy
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import glimt
from glimt import LLM, SamplingParams
from glimt.errors import (
    BadMedia,
    BadSettings,
    EngineDied,
    GlimtError,
    InvalidRequest,
    MediaBlocked,
    PromptTooLong,
    StepFailed,
    Unsupported,
)
from glimt.frontend.tokenizer import Tokenizer
from glimt.models.glm4v import Glm4v
from glimt.runner.executor import ModelExecutor
from tests.support.media import Pixels, encoded, grey_clip, pattern
from tests.support.token_prompts import MEAN, STD

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
OPTIONS: dict[str, Any] = {"dtype": "float32", "device": "cpu", "max_num_seqs": 4}


def user(*parts: Any) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return [{"role": "user", "content": content}]


def data_url(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def picture(image: Any) -> dict[str, Any]:
    return {"type": "image", "image": image}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    (folder / "cat.png").write_bytes(encoded(pattern(112, 140)))
    return folder


@pytest.fixture(scope="module")
def llm(checkpoint: Path, media: Path) -> Iterator[LLM]:
    with LLM(checkpoint, allowed_local_media_path=media, **OPTIONS) as llm:
        yield llm


def ask(llm: LLM, messages: Any, params: SamplingParams = GREEDY, **options: Any) -> Any:
    [output] = llm.chat(messages, params, use_tqdm=False, **options)
    return output


def tokens(llm: LLM, messages: Any, params: SamplingParams = GREEDY) -> list[int]:
    answer: list[int] = ask(llm, messages, params).outputs[0].token_ids
    return answer


# ------------------------------------------------------------------------------------- answers


def processor_patches(pixels: Pixels) -> torch.Tensor:
    """What transformers' image processor gives for [H, W, 3] that needs no resizing:
    [patches, 3 * 2 * 14 * 14], written apart from our media code."""
    height, width, _ = pixels.shape
    values = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - MEAN[:, None, None]) / STD[
        :, None, None
    ]
    both_frames = values.expand(2, 3, height, width)
    blocks = both_frames.reshape(2, 3, height // 28, 2, 14, width // 28, 2, 14)
    return blocks.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(-1, 3 * 2 * 14 * 14)


def transformers_tokens(checkpoint: Path, output: Any, pixels: Pixels | None) -> list[int]:
    """Greedy tokens of transformers' generate() on the same prompt and pixels."""
    model = transformers.Glm4vMoeForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.generation_config.eos_token_id = None
    ids = torch.tensor([output.prompt_token_ids])
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if pixels is not None:
        inputs["pixel_values"] = processor_patches(pixels)
        inputs["image_grid_thw"] = torch.tensor([[1, pixels.shape[0] // 14, pixels.shape[1] // 14]])
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
    length = len(output.outputs[0].token_ids)
    out = model.generate(**inputs, do_sample=False, max_new_tokens=length, pad_token_id=0)
    new: list[int] = out[0, ids.shape[1] :].tolist()
    return new


@pytest.mark.filterwarnings("default")  # transformers speaks of flags that sampling would use
@pytest.mark.parametrize("pixels", [None, pattern(112, 140)], ids=["text", "image"])
def test_a_greedy_answer_is_that_of_transformers(
    llm: LLM, checkpoint: Path, pixels: Pixels | None
) -> None:
    parts = [] if pixels is None else [picture(Image.fromarray(pixels))]
    output = ask(llm, user(*parts, "What is this, and why?"))
    assert output.outputs[0].token_ids == transformers_tokens(checkpoint, output, pixels)


def test_usage_counts_what_is_there(llm: LLM) -> None:
    output = ask(llm, user(picture(Image.fromarray(pattern(112, 140))), "Once more, please"))
    assert output.usage.prompt_tokens == len(output.prompt_token_ids)
    image_token = max(set(output.prompt_token_ids), key=output.prompt_token_ids.count)
    assert output.prompt_token_ids.count(image_token) == (112 // 28) * (140 // 28)
    assert output.usage.completion_tokens == len(output.outputs[0].token_ids) == 8
    assert output.outputs[0].finish_reason == "length"
    again = ask(llm, user(picture(Image.fromarray(pattern(112, 140))), "Once more, please"))
    assert again.num_cached_tokens >= 16
    assert again.outputs == output.outputs


def test_several_conversations_get_the_answers_they_get_alone(llm: LLM) -> None:
    conversations = [
        user(f"Number {i}", *([picture(Image.fromarray(pattern(112, 112 + 28 * i, i)))] * (i % 3)))
        for i in range(7)
    ]
    alone = [tokens(llm, conversation) for conversation in conversations]
    together = llm.chat(conversations, GREEDY, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in together] == alone
    assert len({tuple(answer) for answer in alone}) > 3


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (1, 5, 3)]
    outputs = llm.generate(["one", [5, 6, 7], "three"], params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 5, 3]
    assert [output.prompt for output in outputs] == ["one", None, "three"]
    assert outputs[1].prompt_token_ids == [5, 6, 7]
    with pytest.raises(InvalidRequest, match="2 prompts and 3"):
        llm.generate(["one", "two"], params, use_tqdm=False)


def test_one_prompt_is_a_batch_of_one_and_none_is_none(llm: LLM) -> None:
    [text] = llm.generate("abc", GREEDY, use_tqdm=False)
    [ids] = llm.generate(text.prompt_token_ids, GREEDY, use_tqdm=False)
    assert ids.outputs == text.outputs
    assert llm.generate([], use_tqdm=False) == []


def test_text_cannot_become_a_control_token(llm: LLM) -> None:
    [plain] = llm.generate("<|user|>", GREEDY, use_tqdm=False)
    [control] = llm.generate(ask(llm, user("x")).prompt_token_ids, GREEDY, use_tqdm=False)
    assert not set(plain.prompt_token_ids[2:]) & set(control.prompt_token_ids[:3])


def test_n_answers_differ_and_a_seed_repeats_them(llm: LLM) -> None:
    params = SamplingParams(
        n=3, temperature=1.5, top_k=0, top_p=1.0, seed=7, max_tokens=8, ignore_eos=True
    )
    first, second = (ask(llm, user("Dice"), params) for _ in range(2))
    assert [output.index for output in first.outputs] == [0, 1, 2]
    assert len({tuple(output.token_ids) for output in first.outputs}) == 3
    assert [o.token_ids for o in second.outputs] == [o.token_ids for o in first.outputs]
    assert first.usage.completion_tokens == 24


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    whole = ask(llm, user("Go on")).outputs[0].text
    stop = whole[5:8]
    stopped = ask(llm, user("Go on"), SamplingParams(temperature=0, max_tokens=8, stop=stop))
    assert stopped.outputs[0].text == whole[: whole.index(stop)]
    assert stopped.outputs[0].finish_reason == "stop"
    assert stopped.outputs[0].stop_reason == stop
    assert len(stopped.outputs[0].token_ids) < 8


def test_logprobs_hold_the_chosen_and_the_likeliest_tokens(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, ignore_eos=True)
    [answer] = ask(llm, user("Odds?"), params).outputs
    assert answer.logprobs is not None
    assert len(answer.logprobs) == 4
    for token_id, at_place in zip(answer.token_ids, answer.logprobs, strict=True):
        assert len(at_place) == 2
        assert next(iter(at_place)) == token_id
        assert at_place[token_id].rank == 1
        assert at_place[token_id].logprob == max(each.logprob for each in at_place.values())
    drawn = [
        at_place[i].logprob for i, at_place in zip(answer.token_ids, answer.logprobs, strict=True)
    ]
    assert answer.cumulative_logprob == pytest.approx(sum(drawn))
    assert ask(llm, user("Odds?")).outputs[0].logprobs is None


def test_the_template_gets_its_arguments(llm: LLM) -> None:
    thinking, silent = (
        ask(llm, user("Hm"), chat_template_kwargs={"enable_thinking": on}).prompt_token_ids
        for on in (True, False)
    )
    assert len(silent) > len(thinking)
    bare = ask(llm, user("Hm"), add_generation_prompt=False).prompt_token_ids
    assert len(bare) < len(thinking)


def test_calls_of_the_tools_given_are_apart(llm: LLM, checkpoint: Path) -> None:
    """The model draws the tokens of a call at random; some answers come to be calls."""
    tools = [{"type": "function", "function": {"name": "g", "description": "Goes <|user|>."}}]
    tokenizer = Tokenizer(checkpoint / "tokenizer.json")
    begin, end = (tokenizer.control_tokens[mark] for mark in ("<tool_call>", "</tool_call>"))
    letter = tokenizer.encode_text("g")[0]
    params = SamplingParams(
        n=16,
        temperature=100,
        top_p=1.0,
        top_k=0,
        max_tokens=6,
        ignore_eos=True,
        allowed_token_ids=[begin, end, letter],
    )
    output = ask(llm, user("x"), params, tools=tools)
    assert '"description": "Goes <|user|>."' in tokenizer.decode(output.prompt_token_ids)
    num_calls = 0
    for answer in output.outputs:
        written = tokenizer.decode(answer.token_ids)
        assert len(answer.tool_calls) == written.count("<tool_call>g</tool_call>") + len(
            re.findall("<tool_call>g<tool_call>", written)
        )
        num_calls += len(answer.tool_calls)
        for call in answer.tool_calls:
            assert (call.name, call.arguments) == ("g", "{}")
    assert num_calls
    [calling] = [answer for answer in output.outputs if answer.tool_calls][:1]
    turn = {"role": "assistant", "tool_calls": [c.as_message() for c in calling.tool_calls]}
    result = {"role": "tool", "tool_call_id": calling.tool_calls[0].id, "content": "gone"}
    again = ask(llm, [*user("x"), turn, result], tools=tools)
    assert "<tool_call>g\n</tool_call>" in tokenizer.decode(again.prompt_token_ids)
    none = ask(
        llm, user("x"), msgspec.structs.replace(params, n=2), tools=tools, tool_choice="none"
    )
    assert all(begin not in answer.token_ids for answer in none.outputs)


def test_a_call_that_must_be_made_is_made_whatever_the_model_would_say(llm: LLM) -> None:
    """Random weights, so nothing but the grammar makes these answers calls."""
    parameters = {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "dark blue"]},
            "on": {"type": "boolean"},
            "level": {"type": ["null", "boolean"]},
        },
        "required": ["colour", "on"],
    }
    tools = [
        {"type": "function", "function": {"name": "paint", "parameters": parameters}},
        {"type": "function", "function": {"name": "clock"}},
    ]
    params = SamplingParams(n=4, temperature=5, top_p=1.0, top_k=0, max_tokens=120)
    named = {"type": "function", "function": {"name": "paint"}}
    for choice in (named, "required"):
        answers = ask(llm, user("x"), params, tools=tools, tool_choice=choice).outputs
        for answer in answers:
            assert answer.text == ""
            assert answer.tool_calls
            assert answer.finish_reason == "tool_calls" or choice == "required"
            whole = answer.tool_calls[: None if answer.finish_reason == "tool_calls" else -1]
            for call in whole:
                arguments = json.loads(call.arguments)
                if call.name == "clock":
                    assert arguments == {}
                    continue
                assert list(arguments)[:2] == ["colour", "on"]
                assert arguments["colour"] in ("red", "dark blue")
                assert isinstance(arguments["on"], bool)
        if choice == named:
            assert {call.name for answer in answers for call in answer.tool_calls} == {"paint"}
            assert all(len(answer.tool_calls) == 1 for answer in answers)


def test_thoughts_are_closed_when_their_tokens_are_spent(checkpoint: Path) -> None:
    tokenizer = Tokenizer(checkpoint / "tokenizer.json")
    begin, end = (tokenizer.control_tokens[mark] for mark in ("<think>", "</think>"))
    letter = tokenizer.encode_text("g")[0]
    biased = {begin: 100.0, letter: 90.0}
    with LLM(checkpoint, reasoning_parser="glm45", **OPTIONS) as llm:
        for budget in (0, 3):
            params = SamplingParams(
                temperature=0,
                max_tokens=12,
                ignore_eos=True,
                logit_bias=biased,
                frequency_penalty=2.0,
                thinking_token_budget=budget,
            )
            prompts = [user("x"), user("y, and more")]
            for output in llm.chat(prompts, params, use_tqdm=False):
                token_ids = output.outputs[0].token_ids
                assert token_ids[0] == begin
                assert token_ids.index(end) == budget + 2  # after the mark, thoughts, a line break
    with LLM(checkpoint, **OPTIONS) as llm, pytest.raises(Unsupported, match="reasoning"):
        ask(llm, user("x"), SamplingParams(thinking_token_budget=3))


def test_thoughts_are_apart_if_a_parser_is_asked_for(checkpoint: Path) -> None:
    with LLM(checkpoint, reasoning_parser="glm45", **OPTIONS) as llm:
        silent = ask(llm, user("x"), chat_template_kwargs={"enable_thinking": False})
        begin, end = silent.prompt_token_ids[-3:-1]  # … <think></think>\n
        letter = llm.generate("g", GREEDY, use_tqdm=False)[0].prompt_token_ids[-1]
        params = SamplingParams(
            n=8,
            temperature=1,
            top_p=1.0,
            top_k=0,
            max_tokens=8,
            ignore_eos=True,
            allowed_token_ids=[letter, begin, end],
        )
        answers = ask(llm, user("x"), params).outputs
    with_thoughts = [answer for answer in answers if answer.reasoning]
    assert with_thoughts
    for answer in answers:
        thinks, told = False, {True: "", False: ""}
        for token_id in answer.token_ids:
            if token_id == letter:
                told[thinks] += "g"
            else:
                thinks = token_id == begin
        assert ((answer.reasoning or ""), answer.text) == (told[True], told[False])


# --------------------------------------------------------------------------------------- media


def same_as(llm: LLM, part: dict[str, Any], other: dict[str, Any]) -> bool:
    """Both are shown to the model as the same pixels: log-probabilities are equal, but for what
    float32 rounds otherwise where the second prompt is partly cached."""
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=5, ignore_eos=True)
    one, two = (ask(llm, user(each, "Look"), params) for each in (part, other))
    told, told_again = (
        [entry.logprob for by in answer.outputs[0].logprobs or () for entry in by.values()]
        for answer in (one, two)
    )
    same_tokens = one.outputs[0].token_ids == two.outputs[0].token_ids
    same_prompt = one.prompt_token_ids == two.prompt_token_ids
    return bool(same_prompt and same_tokens and told == pytest.approx(told_again, abs=1e-4))


def test_a_picture_is_the_same_however_it_is_given(llm: LLM, media: Path) -> None:
    path = media / "cat.png"
    reference = data_url(path.read_bytes())
    for other in (
        picture(Image.open(path)),
        {"type": "image_pil", "image_pil": Image.open(path)},
        picture(path),
        picture(str(path)),
        {"type": "image_url", "image_url": path.as_uri()},
        {"type": "image_url", "image_url": {"url": path.as_uri()}},
    ):
        assert same_as(llm, other, reference), other
    assert not same_as(llm, picture(Image.fromarray(pattern(112, 140, seed=1))), reference)


def awkward_pictures() -> Iterator[tuple[str, bytes]]:
    """Files whose pixels depend on more than their pixels."""
    colour = Image.fromarray(pattern(90, 123))
    turned = Image.Exif()
    turned[0x0112] = 6
    yield "turned", encoded(colour, "JPEG", exif=turned)
    yield "cmyk", encoded(colour.convert("CMYK"), "JPEG")
    yield "grey", encoded(colour.convert("L"))
    yield "palette", encoded(colour.quantize(16), "GIF", transparency=3)
    alpha = colour.copy()
    alpha.putalpha(Image.fromarray(pattern(90, 123, seed=2)).convert("L"))
    yield "alpha", encoded(alpha)
    yield "two colours", encoded(colour.convert("1"))
    deep = np.arange(90 * 123, dtype=np.uint16).reshape(90, 123) * 5
    yield "deep", encoded(Image.fromarray(deep))
    yield "tiff", encoded(colour, "TIFF", exif=turned)


@pytest.mark.parametrize(("name", "data"), list(awkward_pictures()), ids=lambda v: str(v)[:12])
def test_an_opened_file_is_seen_as_the_server_sees_its_bytes(
    llm: LLM, tmp_path: Path, name: str, data: bytes
) -> None:
    file = tmp_path / "picture"
    file.write_bytes(data)
    with Image.open(file) as image:
        assert same_as(llm, picture(image), data_url(data, "image/any")), name


def test_a_video_can_be_a_file(llm: LLM, tmp_path: Path) -> None:
    clip = grey_clip(60, rate=30)
    (tmp_path / "clip.mp4").write_bytes(clip)
    url = "data:video/mp4;base64," + base64.b64encode(clip).decode()
    by_path = {"type": "video", "video": tmp_path / "clip.mp4"}
    assert same_as(llm, by_path, {"type": "video_url", "video_url": {"url": url}})


def test_more_pictures_than_the_arena_holds_wait_for_each_other(checkpoint: Path) -> None:
    small = {"mm_processor_cache_gb": 0.5 / 1024, "limit_mm_per_prompt": {"image": 2, "video": 0}}
    with LLM(checkpoint, **OPTIONS, **small) as llm:
        pictures = [Image.fromarray(pattern(224, 224, seed)) for seed in range(12)]
        conversations = [
            user(picture(one), picture(two), "Both?")
            for one, two in zip(pictures[::2], pictures[1::2], strict=True)
        ]
        outputs = llm.chat(conversations, GREEDY, use_tqdm=False)
        assert [o.outputs[0].token_ids for o in outputs] == [tokens(llm, c) for c in conversations]


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("part", "error", "param"),
    [
        (data_url(b"\x89PNG\r\n\x1a\nbroken"), BadMedia, "messages[0].content[1].image_url"),
        (picture(Image.new("F", (64, 64))), BadMedia, "messages[0].content[1].image_url"),
        (picture(Path("/no/such/file.png")), BadMedia, "messages[0].content[1].image_url"),
        (picture("/etc/passwd"), MediaBlocked, "messages[0].content[1].image_url"),
        (picture("http://127.0.0.1/x.png"), MediaBlocked, "messages[0].content[1].image_url"),
        (picture("picture:00"), MediaBlocked, "messages[0].content[1].image_url"),
        (picture(3), InvalidRequest, "messages[0].content[1].image"),
        ({"type": "video", "video": Image.new("L", (9, 9))}, InvalidRequest, None),
    ],
    ids=["damaged", "mode", "missing", "outside", "private", "forged", "number", "kind"],
)
def test_a_bad_picture_is_named(
    llm: LLM, part: dict[str, Any], error: type[GlimtError], param: str | None
) -> None:
    with pytest.raises(error) as caught:
        ask(llm, user("What is", part))
    assert getattr(caught.value, "param", None) == (param or "messages[0].content[1].video")
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"temperature": -1.0}, InvalidRequest, "temperature"),
        ({"top_p": 0.0}, InvalidRequest, "top_p"),
        ({"max_tokens": 0}, InvalidRequest, "max_tokens"),
        ({"max_tokens": "many"}, InvalidRequest, "max_tokens"),
        ({"max_tokens": 5000}, PromptTooLong, "max_tokens"),
        ({"n": 2, "temperature": 0}, InvalidRequest, "n"),
        ({"logprobs": 21}, InvalidRequest, "top_logprobs"),
        ({"stop_token_ids": [640]}, InvalidRequest, "stop_token_ids[0]"),
        ({"logit_bias": {640: 1.0}}, InvalidRequest, "logit_bias"),
    ],
)
def test_parameters_are_judged_by_the_servers_rules(
    llm: LLM, fields: dict[str, Any], error: type[GlimtError], param: str
) -> None:
    for run in (lambda p: llm.chat(user("x"), p), lambda p: llm.generate("x", p)):
        with pytest.raises(error) as caught:
            run(SamplingParams(**fields))
        assert getattr(caught.value, "param", None) == param


def test_an_error_says_which_prompt_it_was_and_ends_the_others(llm: LLM) -> None:
    long = SamplingParams(max_tokens=3000, ignore_eos=True)
    with pytest.raises(BadMedia) as caught:
        llm.chat([user("a"), user(data_url(b"no image"), "b")], long, use_tqdm=False)
    assert "number 1 of 2" in caught.value.__notes__[0]
    assert len(tokens(llm, user("still there"))) == 8


@pytest.mark.parametrize(
    ("wishes", "error", "text"),
    [
        ({"dtype": "int3"}, BadSettings, "dtype"),
        ({"max_num_seqs": "4"}, BadSettings, "max_num_seqs"),
        ({"tensor_parallel_size": 0}, BadSettings, "tensor-parallel-size"),
        ({"distributed_executor_backend": "ray"}, BadSettings, "serve with Ray"),
        ({"hf_overrides": {1: 2}, "max_model_len": "12q"}, BadSettings, "max-model-len"),
        ({"port": 80}, TypeError, "port"),
        ({"no_such_thing": 1}, TypeError, "no_such_thing"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    checkpoint: Path, wishes: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        LLM(checkpoint, **wishes)


def test_settings_are_those_of_the_command_line(checkpoint: Path) -> None:
    with LLM(
        str(checkpoint),
        max_model_len="1K",
        hf_overrides={"text_config": {"num_hidden_layers": 2}},
        load_format="dummy",
        kv_cache_dtype="fp8",
        block_size=32,
        limit_mm_per_prompt={"image": 1},
        device="cpu",
    ) as llm:
        assert (llm.info.max_model_len, llm.info.page_size) == (1024, 32)
        assert llm.info.weights_format == "random"
        assert llm.info.kv_cache_dtype == "float8_e4m3fn"
        image = picture(Image.new("RGB", (64, 64)))
        with pytest.raises(InvalidRequest, match="at most 1 image"):
            ask(llm, user(image, image))


# ---------------------------------------------------------------------------------------- life


def glimt_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("glimt", "fetch", "asyncio"))]


def models() -> list[weakref.ref[Glm4v]]:
    return [weakref.ref(each) for each in gc.get_objects() if type(each) is Glm4v]


def wait_for_no_threads(before: list[str]) -> None:
    deadline = time.monotonic() + 20
    while sorted(glimt_threads()) != sorted(before):
        assert time.monotonic() < deadline, glimt_threads()
        time.sleep(0.01)


def test_closing_ends_all_threads_and_later_calls(checkpoint: Path) -> None:
    before, descriptors = glimt_threads(), len(os.listdir("/proc/self/fd"))
    llm = LLM(checkpoint, **OPTIONS)
    with_weights = models()
    ask(llm, user(picture(Image.fromarray(pattern(112, 112))), "x"))
    assert len(glimt_threads()) > len(before)
    llm.close()
    llm.close()
    wait_for_no_threads(before)
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    gc.collect()
    assert sum(model() is None for model in with_weights) == 1
    with pytest.raises(EngineDied, match="closed"):
        llm.generate("x")


def test_nobody_left_to_use_it_closes_it(checkpoint: Path) -> None:
    before = glimt_threads()
    llm = LLM(checkpoint, **OPTIONS)
    ask(llm, user("x"))
    del llm
    gc.collect()
    wait_for_no_threads(before)


def test_a_start_that_fails_leaves_nothing_behind(checkpoint: Path) -> None:
    before, descriptors = glimt_threads(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(BadSettings):
        LLM(checkpoint, max_model_len=1_000_000)
    wait_for_no_threads(before)
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_closing_ends_a_call_that_runs_in_another_thread(checkpoint: Path) -> None:
    llm = LLM(checkpoint, **OPTIONS)
    endless = SamplingParams(max_tokens=4000, ignore_eos=True)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            llm.chat([user("a"), user("b")], endless, use_tqdm=False)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.05)  # whenever it comes, the call ends
    llm.close()
    thread.join()
    assert [type(error) for error in errors] == [EngineDied]


def test_an_interrupt_ends_the_call_and_leaves_the_engine_usable(llm: LLM) -> None:
    before = tokens(llm, user("steady"))
    endless = SamplingParams(max_tokens=4000, ignore_eos=True)
    main = threading.get_ident()

    def call() -> None:
        threading.Timer(0.1, signal.pthread_kill, [main, signal.SIGINT]).start()
        llm.chat([user("a"), user("b")], endless, use_tqdm=False)

    with pytest.raises(KeyboardInterrupt):
        call()
    assert tokens(llm, user("steady")) == before


def test_an_engine_that_fails_for_good_says_so(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(executor: ModelExecutor, plan: object) -> None:
        raise RuntimeError("the device is gone")

    with LLM(checkpoint, **OPTIONS) as llm:
        monkeypatch.setattr(ModelExecutor, "launch", launch)
        for _ in range(8):
            with pytest.raises(StepFailed):
                llm.generate("x", GREEDY, use_tqdm=False)
        with pytest.raises(EngineDied):
            llm.generate("x", GREEDY, use_tqdm=False)
        with pytest.raises(EngineDied, match="another LLM"):
            llm.generate("x", GREEDY, use_tqdm=False)


def test_several_threads_may_ask_at_once(llm: LLM) -> None:
    alone = [tokens(llm, user(f"thread {i}")) for i in range(4)]
    found: dict[int, list[int]] = {}

    def call(index: int) -> None:
        found[index] = tokens(llm, user(f"thread {index}"))

    threads = [threading.Thread(target=call, args=[index]) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(4)] == alone


def test_the_package_offers_it_by_name() -> None:
    assert glimt.LLM is LLM
    assert glimt.SamplingParams is SamplingParams
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = glimt.Nothing  # type: ignore[attr-defined]


def test_the_example_of_the_documentation_runs(
    checkpoint: Path,
    media: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (Path(glimt.__file__).parents[1] / "docs" / "offline.md").read_text("utf-8")
    [example] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(media)
    code = example.replace("zai-org/GLM-4.6V-Flash", str(checkpoint))
    script = tmp_path / "example.py"
    script.write_text(code, "utf-8")
    runpy.run_path(str(script))
    assert "prompt tokens" in capsys.readouterr().out
