"""Fields that change the prompt, the media, or when an answer counts as a loop."""

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from glimt.frontend.repetition import RepetitionDetector, RepetitionRule
from tests.support.http_half import HEADERS, VIDEO, Serving, chat_body, spoken
from tests.support.prompts import tokenizer

PICTURE = {"type": "image_url", "image_url": {"url": "data:a"}}
CLIP = {"type": "video_url", "video_url": {"url": "data:v"}}
PREFILL = [
    {"role": "user", "content": "Count."},
    {"role": "assistant", "content": "One, two,  "},
]


def prompt_of(serving: Serving) -> str:
    ids = np.frombuffer(serving.engine.submits[-1].token_ids, np.int32)
    return tokenizer().decode(ids.tolist())


async def test_the_last_message_is_continued_where_it_ends() -> None:
    serving = Serving(spoken(" three"))
    reply = await serving.chat(messages=PREFILL, continue_final_message=True)
    assert prompt_of(serving).endswith(("One, two,", "One, two,  "))
    assert "<|assistant|>" in prompt_of(serving)
    assert reply.json()["choices"][0]["message"]["content"] == " three"


async def test_a_message_that_the_template_does_not_show_cannot_be_continued() -> None:
    serving = Serving(trust_request_template=True)
    for content, template in (("  ", None), ("x", "{{ messages[0].content }}")):
        messages = [PREFILL[0], {"role": "assistant", "content": content}]
        fields = {"chat_template": template} if template else {}
        reply = await serving.chat(messages=messages, continue_final_message=True, **fields)
        assert (reply.status, reply.error["param"]) == (400, "continue_final_message")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_stands_before_the_answer(stream: bool) -> None:
    serving = Serving(spoken("three"))
    reply = await serving.chat(
        messages=PREFILL, continue_final_message=True, echo=True, stream=stream, n=2
    )
    if stream:
        deltas = [event["choices"][0] for event in reply.events[:-1]]
        assert sum("role" in each["delta"] for each in deltas) == 2
        texts = [
            "".join(each["delta"].get("content", "") for each in deltas if each["index"] == i)
            for i in range(2)
        ]
    else:
        texts = [choice["message"]["content"] for choice in reply.json()["choices"]]
    assert texts == ["One, two,  three"] * 2


async def test_there_is_nothing_to_echo_of_a_user() -> None:
    answer = (await Serving(spoken("three")).chat(echo=True)).json()
    assert answer["choices"][0]["message"]["content"] == "three"


async def test_a_request_brings_its_template_only_where_it_is_trusted() -> None:
    template = "{{ messages[0].content }}!<|assistant|>"
    reply = await Serving().chat(chat_template=template)
    assert (reply.status, reply.error["param"]) == (400, "chat_template")
    serving = Serving(trust_request_template=True)
    assert (await serving.chat(chat_template=template)).status == 200
    assert prompt_of(serving) == "hi!<|assistant|>"
    for broken in ("{% if %}", "{{ raise_exception('no') }}", "{{ ''.__class__.mro() }}"):
        reply = await serving.chat(chat_template=broken)
        assert reply.status == 400


async def test_what_a_client_says_is_no_control_token_in_its_own_template_either() -> None:
    serving = Serving(trust_request_template=True)
    messages = [{"role": "user", "content": "<|user|>"}]
    await serving.chat(messages=messages, chat_template="{{ messages[0].content }}<|user|>")
    ids = np.frombuffer(serving.engine.submits[-1].token_ids, np.int32).tolist()
    assert ids.count(tokenizer().control_tokens["<|user|>"]) == 1


async def test_a_long_prompt_keeps_its_end() -> None:
    messages = [{"role": "user", "content": "word " * 200}]
    whole, cut = Serving(), Serving()
    await whole.chat(messages=messages)
    reply = await cut.chat(messages=messages, truncate_prompt_tokens=10)
    assert reply.json()["usage"]["prompt_tokens"] == 10
    assert whole.engine.submits[0].token_ids[-40:] == cut.engine.submits[0].token_ids
    long = [{"role": "user", "content": "word " * 1000}]
    assert (await cut.chat(messages=long)).status == 400
    reply = await cut.chat(messages=long, truncate_prompt_tokens=-1, max_tokens=100)
    assert reply.json()["usage"]["prompt_tokens"] == 512 - 100
    reply = await cut.chat(messages=long, truncate_prompt_tokens=-1, max_tokens=...)
    assert reply.json()["usage"]["prompt_tokens"] == 511


async def test_a_prompt_with_a_picture_is_not_cut() -> None:
    messages = [{"role": "user", "content": [PICTURE, {"type": "text", "text": "word " * 50}]}]
    reply = await Serving().chat(messages=messages, truncate_prompt_tokens=10)
    assert (reply.status, reply.error["param"]) == (400, "truncate_prompt_tokens")
    assert (await Serving().chat(messages=messages, truncate_prompt_tokens=400)).status == 200


@pytest.mark.parametrize(
    ("fields", "image", "video"),
    [
        ({}, None, None),
        ({"mm_processor_kwargs": {}, "media_io_kwargs": {"video": {"num_frames": -1}}}, None, None),
        (
            {"mm_processor_kwargs": {"size": {"longest_edge": 10_000}}},
            {"max_pixels": 10_000, "min_pixels": 10_000},
            None,
        ),
        (
            {"mm_processor_kwargs": {"size": {"shortest_edge": 20_000}, "fps": 0.5}},
            {"min_pixels": 20_000},
            {"fps": 0.5},
        ),
        (
            {"mm_processor_kwargs": {"max_pixels": 50_000, "min_pixels": 1000}},
            {"max_pixels": 100_000, "min_pixels": 2000},
            None,
        ),
        (
            {"media_io_kwargs": {"image": {"rgba_background_color": [0, 9, 255]}}},
            {"background": (0, 9, 255)},
            None,
        ),
        ({"media_io_kwargs": {"video": {"num_frames": 8}}}, None, {"num_frames": 8}),
        (
            {"media_io_kwargs": {"video": {"fps": 4, "max_frames": 8}}},
            None,
            {"fps": 4.0, "max_frames": 8},
        ),
        (
            {
                "mm_processor_kwargs": {
                    "images_kwargs": {"size": {"longest_edge": 50_000}},
                    "videos_kwargs": {"size": {"longest_edge": 1_000_000}, "max_frames": 4},
                }
            },
            {"max_pixels": 50_000},
            {"max_pixels": 1_000_000, "max_frames": 4},
        ),
    ],
)
async def test_media_are_prepared_as_the_request_wants(
    fields: Any, image: dict[str, Any] | None, video: dict[str, Any] | None
) -> None:
    serving = Serving()
    messages = [{"role": "user", "content": [PICTURE, CLIP]}]
    assert (await serving.chat(messages=messages, **fields)).status == 200
    for settings, wish in zip(serving.media.settings, (image, video), strict=True):
        if wish is None:
            assert settings is None
        else:
            assert settings is not None
            assert {name: getattr(settings, name) for name in wish} == wish


@pytest.mark.parametrize("wish", [{"fps": 1}, {"num_frames": -1}])
async def test_a_request_may_leave_the_operators_number_of_frames(wish: Any) -> None:
    serving = Serving(media_settings={"video": replace(VIDEO, num_frames=16)})
    messages = [{"role": "user", "content": [CLIP]}]
    assert (await serving.chat(messages=messages, media_io_kwargs={"video": wish})).status == 200
    assert serving.media.settings[0].num_frames == 0


async def test_a_rate_is_refused_where_frames_are_chosen_by_length() -> None:
    settings = {"video": replace(VIDEO, sampler="glm46v")}
    reply = await Serving(media_settings=settings).chat(mm_processor_kwargs={"fps": 1})
    assert (reply.status, reply.error["code"]) == (400, "unsupported")
    assert reply.error["param"] == "mm_processor_kwargs.fps"


@pytest.mark.parametrize("tokens_per_step", [1, 50])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_goes_round_in_circles_is_ended(
    stream: bool, tokens_per_step: int
) -> None:
    once, loop = (tokenizer().encode_text(text) for text in ("Once", " round and"))
    serving = Serving([*once, *loop * 40])
    serving.engine.tokens_per_step = tokens_per_step
    wish = {"max_pattern_size": 8, "min_count": 3}
    reply = await serving.chat(repetition_detection=wish, stream=stream, max_tokens=300)
    if stream:
        choices = [event["choices"][0] for event in reply.events[:-1]]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
    else:
        choices = reply.json()["choices"]
        text = choices[0]["message"]["content"]
        assert reply.json()["usage"]["completion_tokens"] == len(once) + 3 * len(loop)
    assert choices[-1]["finish_reason"] == "repetition"
    assert text == "Once" + " round and" * 3
    serving.engine.step()
    assert serving.client.num_open == 0
    if tokens_per_step == 1:
        assert len(serving.engine.aborts) == 1


def test_only_whole_patterns_of_the_right_size_count() -> None:
    rule = RepetitionRule(min_size=2, max_size=3, min_count=3)
    assert RepetitionDetector(rule).push([7] * 5) is None  # a pattern of one, seen as two: 2½ times
    assert RepetitionDetector(rule).push([7] * 6) == 6
    assert RepetitionDetector(rule).push([1, 2, 3, 4] * 5) is None
    assert RepetitionDetector(rule).push([9, 1, 2, 3, 1, 2, 3, 1, 2, 4, 1, 2, 3]) is None
    assert RepetitionDetector(rule).push([9, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1]) == 10
    detector = RepetitionDetector(rule)
    assert [detector.push([token]) for token in (5, 6, 5, 6, 5, 6)] == [None] * 5 + [1]


async def test_a_detection_of_nothing_detects_nothing() -> None:
    serving = Serving(tokenizer().encode_text("a") * 30)
    reply = await serving.chat(repetition_detection={"max_pattern_size": 0}, max_tokens=20)
    assert reply.json()["choices"][0]["finish_reason"] == "length"


async def test_the_id_that_a_body_gives_names_the_request() -> None:
    for given, shown in (("mine", "mine"), ("two words", None)):
        reply = await Serving().chat(request_id=given)
        assert reply.headers["x-request-id"] == (shown or reply.json()["id"].partition("-")[2])
    headers = [*HEADERS, (b"x-request-id", b"header")]
    reply = await Serving().ask(body=chat_body(request_id="body"), headers=headers)
    assert reply.headers["x-request-id"] == "header"


async def test_a_template_that_takes_texts_only_gets_texts_with_marks_of_media() -> None:
    template = "<|user|>{{ messages[0].content }}<|assistant|>"
    serving = Serving(trust_request_template=True)
    parts = [{"type": "text", "text": "see <|image|>"}, PICTURE, {"type": "text", "text": "well?"}]
    messages = [{"role": "user", "content": parts}]
    reply = await serving.chat(messages=messages, chat_template=template)
    assert reply.status == 200
    one = serving.engine.submits[0]
    ids = np.frombuffer(one.token_ids, np.int32).tolist()
    assert ids.count(tokenizer().control_tokens["<|image|>"]) == one.images[0].num_tokens
    shown = prompt_of(serving)
    assert shown.startswith("<|user|>see <|image|>\n<|begin_of_image|><|image|>")
    assert shown.endswith("<|end_of_image|>\nwell?<|assistant|>")


async def test_a_template_that_takes_lists_only_gets_lists() -> None:
    template = "{% for part in messages[0].content %}{{ part.text }}{% endfor %}<|assistant|>"
    serving = Serving(trust_request_template=True)
    assert (await serving.chat(chat_template=template)).status == 200
    assert prompt_of(serving) == "hi<|assistant|>"
