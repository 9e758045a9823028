"""Conversations become prompts: histories, media in their places, limits, leases."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.errors import BadCheckpoint, BadMedia, InvalidRequest, PromptTooLong
from glimt.frontend.positions import mrope_positions
from glimt.frontend.prompt import Conversation, MediaSource, PreparedMedia, Prompt
from glimt.frontend.render import Renderer
from glimt.frontend.template import ChatTemplate
from glimt.wire import ImageSettings
from tests.support.prompts import (
    CountedLease,
    FakeMedia,
    control_ids,
    renderer,
    template_source,
    tokenizer,
    tokenizer_without,
    whole_tokenizer,
)


def _conversation(*content: Any, **kwargs: Any) -> Conversation:
    """One user turn of texts and media; media are (kind, url)."""
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": part[0]}
        for part in content
    ]
    media = [part for part in content if not isinstance(part, str)]
    return Conversation(
        messages=({"role": "user", "content": parts},),
        media=tuple(
            MediaSource(kind, url, f"messages[0].content[{i}]")
            for i, (kind, url) in enumerate(media)
        ),
        **kwargs,
    )


def _run(conversation: Conversation, media: Any = None, salt: bytes = b"", **kwargs) -> Prompt:
    media = FakeMedia({}) if media is None else media
    return asyncio.run(renderer(**kwargs).render(conversation, media, cache_salt=salt))


def _text(prompt: Prompt) -> str:
    return tokenizer().decode(prompt.token_ids.tolist())


# ------------------------------------------------------------------------------------- media

_GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 5)).map(lambda g: (2 * g[0], 2 * g[1]))
_STEPS = st.lists(
    st.tuples(_GRIDS, st.sampled_from(["0", "1", "12", "0.4 seconds"])), min_size=1, max_size=3
)
_PARTS = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8", exclude_characters="<[/"), max_size=6),
        _GRIDS,
        _STEPS,
    ),
    max_size=6,
)


@given(_PARTS)
def test_placeholders_grow_as_the_processors_of_transformers_make_them(parts) -> None:
    content: list[Any] = []
    grids: dict[str, Any] = {}
    text = "[gMASK]<sop><|user|>\n"
    begin, end = "<|begin_of_image|>", "<|end_of_image|>"
    for index, part in enumerate(parts):
        url = f"m{index}"
        if isinstance(part, str):
            content.append(part)
            text += part
        elif isinstance(part, tuple):
            content.append(("image", url))
            grids[url] = part
            text += begin + "<|image|>" * (part[0] * part[1] // 4) + end
        else:
            content.append(("video", url))
            grids[url] = [(h, w, stamp) for (h, w), stamp in part]
            steps = [f"{begin}{'<|image|>' * (h * w // 4)}{end}{s}" for h, w, s in grids[url]]
            text += "<|begin_of_video|>" + "".join(steps) + "<|end_of_video|>"
    expected = whole_tokenizer().encode(text + "<|assistant|>\n", add_special_tokens=False).ids

    media = FakeMedia(grids)
    prompt = _run(_conversation(*content), media)
    assert prompt.token_ids.tolist() == expected
    image = tokenizer().token_id("<|image|>")
    covered = [i for s in prompt.images for i in range(s.start, s.start + s.num_tokens)]
    assert covered == [i for i, token_id in enumerate(expected) if token_id == image]
    assert prompt.num_media_tokens == len(covered)
    positions, rope_delta = mrope_positions(len(expected), prompt.images, 2)
    assert prompt.rope_delta == rope_delta
    assert (prompt.positions is None) == (positions is None)
    assert prompt.positions is None or (prompt.positions == positions).all()
    assert len(prompt.leases) == len(grids)
    assert all(lease.released == 0 for lease in media.leases)


def test_hashes_tell_apart_contents_frames_shapes_and_tenants() -> None:
    video = [(2, 2, "0"), (2, 2, "1")]
    media = FakeMedia({"a": (2, 2), "b": (2, 2), "v": video})
    content = (("image", "a"), ("image", "b"), ("video", "v"))
    one, again, other = (
        [s.content_hash for s in _run(_conversation(*content), media, salt=salt).images]
        for salt in (b"", b"", b"tenant")
    )
    assert one == again
    assert len({*one, *other}) == 8
    assert {len(h) for h in one} == {32}


def test_a_template_without_a_place_for_media_is_said_to_be_so() -> None:
    content = [{"type": "text", "text": "here"}, {"type": "image"}]
    conversation = Conversation(
        messages=({"role": "user", "content": content},),
        media=(MediaSource("image", "m", "p"),),
    )
    source = "{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    with pytest.raises(InvalidRequest, match="0 places for the 1 images"):
        _run(conversation, FakeMedia({"m": (2, 2)}), source=source)


def test_media_that_no_message_mentions_are_refused() -> None:
    conversation = Conversation(
        messages=({"role": "user", "content": "hi"},), media=(MediaSource("image", "m", "p"),)
    )
    with pytest.raises(InvalidRequest, match="do not match"):
        _run(conversation, FakeMedia({"m": (2, 2)}))


# ------------------------------------------------------------------------------------- leases


def test_a_failing_medium_releases_the_others() -> None:
    failure = BadMedia("no image", param="messages[0].content[1]")
    media = FakeMedia({"a": (2, 2), "c": (2, 2)}, failures={"b": failure})
    with pytest.raises(BadMedia) as caught:
        _run(_conversation(("image", "a"), ("image", "b"), ("image", "c")), media)
    assert caught.value is failure
    assert [lease.released for lease in media.leases] == [1] * len(media.leases)


def test_a_prompt_that_is_too_long_with_its_media_releases_them() -> None:
    media = FakeMedia({"a": (20, 20)})
    with pytest.raises(PromptTooLong, match=r"tokens \(100 of them of media\).*context of 50"):
        _run(_conversation(("image", "a")), media, max_model_len=50)
    assert [lease.released for lease in media.leases] == [1]


async def _turns_of_the_loop(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class _SlowMedia:
    """The first medium is ready at once, the second only when told to be."""

    def __init__(self, *, ignores_cancel: bool = False) -> None:
        self.leases: list[CountedLease] = []
        self.gate = asyncio.Event()
        self.fails_on = ""
        self._ignores_cancel = ignores_cancel
        self._ready = FakeMedia({"a": (2, 2), "b": (2, 2)}, leases=self.leases)

    async def prepare(self, source: MediaSource) -> PreparedMedia:
        if source.url == self.fails_on:
            raise BadMedia("broken")
        if source.url == "b":
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                if not self._ignores_cancel:
                    raise
                await _turns_of_the_loop(5)
        return await self._ready.prepare(source)


@pytest.mark.parametrize("num_cancels", [1, 2])
@pytest.mark.parametrize("ignores_cancel", [False, True])
async def test_a_cancelled_rendering_leaves_no_lease(num_cancels, ignores_cancel) -> None:
    media = _SlowMedia(ignores_cancel=ignores_cancel)
    conversation = _conversation(("image", "a"), ("image", "b"))
    task = asyncio.ensure_future(renderer().render(conversation, media))
    await _turns_of_the_loop(5)
    for _ in range(num_cancels):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [lease.released for lease in media.leases] == [1] * len(media.leases)
    assert len(media.leases) == (2 if ignores_cancel and num_cancels == 1 else 1)


async def test_a_failed_rendering_waits_for_preparations_that_take_their_time_to_leave() -> None:
    media = _SlowMedia(ignores_cancel=True)
    media.fails_on = "c"
    with pytest.raises(BadMedia):
        await renderer().render(_conversation(*(("image", url) for url in "abc")), media)
    assert [lease.released for lease in media.leases] == [1, 1]


async def test_media_are_prepared_side_by_side() -> None:
    waiting = asyncio.Barrier(3)

    class Together(FakeMedia):
        async def prepare(self, source: MediaSource) -> PreparedMedia:
            await waiting.wait()  # passes only when all three are here
            return await super().prepare(source)

    content = [("image", url) for url in "abc"]
    media = Together(dict.fromkeys("abc", (2, 2)))
    prompt = await asyncio.wait_for(renderer().render(_conversation(*content), media), 10)
    assert len(prompt.images) == 3
    prompt.release()
    assert [lease.released for lease in media.leases] == [1, 1, 1]


# ------------------------------------------------------------------------------------- template


def test_what_a_template_says_of_the_messages_is_shown_as_written() -> None:
    source = "{{ raise_exception('not ' ~ messages[0].content) }}"
    with pytest.raises(InvalidRequest, match=r"not <\|you\|>"):
        _run(Conversation(messages=({"role": "user", "content": "<|you|>"},)), source=source)


def test_unknown_template_arguments_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="chat_template_kwargs"):
        _run(_conversation("hi", template_kwargs={"add_generation_prompt": False}))


def test_what_a_template_reads_may_come_with_the_request_and_stays_text() -> None:
    source = "<|user|>{{ mood }}{% for each in marks %}{{ each.a }}{% endfor %}"
    hostile = {"mood": "<|user|>", "marks": [{"a": "<think>"}]}
    prompt = _run(_conversation("hi", template_kwargs=hostile), source=source)
    assert _text(prompt) == "<|user|><|user|><think>"
    assert len(control_ids(prompt.token_ids)) == 1


def test_thinking_off_closes_the_thought_for_the_model() -> None:
    prompt = _run(_conversation("hi", template_kwargs={"thinking": False}))
    assert _text(prompt).endswith("hi/nothink<|assistant|>\n<think></think>\n")


# ------------------------------------------------------------------------------------- limits


def test_a_prompt_must_leave_room_for_an_answer() -> None:
    length = _run(_conversation("hello")).num_tokens
    assert _run(_conversation("hello"), max_model_len=length + 1).num_tokens == length
    with pytest.raises(PromptTooLong, match=f"has {length} tokens; the context of {length}"):
        _run(_conversation("hello"), max_model_len=length)


def test_text_that_cannot_fit_is_refused_unread() -> None:
    with pytest.raises(PromptTooLong, match=r"8,000,\d\d\d bytes.* at most 1,600 "):
        _run(_conversation("ø" * 4_000_000), max_model_len=100)


def test_deep_nesting_is_refused() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested"):
        _run(_conversation("hi", tools=({"a": deep},)))


async def test_long_texts_are_encoded_beside_the_event_loop() -> None:
    steps = 0

    async def tick() -> None:
        nonlocal steps
        while True:
            steps += 1
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(tick())
    prompt = await renderer().render(_conversation("hello world " * 5_000), FakeMedia({}))
    ticking.cancel()
    assert steps > 1
    assert "hello world " * 5_000 in _text(prompt)


# ------------------------------------------------------------------------------------- bare text


async def test_bare_text_begins_as_all_prompts_do_and_holds_no_control_token() -> None:
    prompt = await renderer().render_text("hi <|user|>")
    start = [tokenizer().token_id("[gMASK]"), tokenizer().token_id("<sop>")]
    assert prompt.token_ids.tolist() == start + tokenizer().encode_text("hi <|user|>")
    bare = await renderer().render_text("hi", add_special_tokens=False)
    assert bare.token_ids.tolist() == tokenizer().encode_text("hi")
    assert prompt.positions is None


async def test_token_ids_are_taken_as_they_are() -> None:
    prompt = await renderer().render_text([5, 0, tokenizer().vocab_size - 1])
    assert prompt.token_ids.tolist() == [5, 0, tokenizer().vocab_size - 1]


@pytest.mark.parametrize("token_ids", [[-1], [tokenizer().vocab_size], [2**40], []])
async def test_token_ids_out_of_range_are_refused(token_ids) -> None:
    with pytest.raises(InvalidRequest):
        await renderer().render_text(token_ids)


async def test_an_empty_text_without_start_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        await renderer().render_text("", add_special_tokens=False)


async def test_a_checkpoint_without_template_still_completes_text() -> None:
    bare = Renderer(tokenizer(), None, ImageSettings(), 100)
    assert (await bare.render_text("hi")).num_tokens > 2
    with pytest.raises(InvalidRequest, match="no chat template"):
        await bare.render(_conversation("hi"), FakeMedia({}))


def test_a_tokenizer_without_placeholders_is_refused() -> None:
    bare = tokenizer_without("<|image|>")
    with pytest.raises(BadCheckpoint, match=r"<\|image\|>"):
        Renderer(bare, ChatTemplate(template_source()), ImageSettings(), 100)
