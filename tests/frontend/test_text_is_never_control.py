"""Nothing a client writes becomes a control token, and everything it writes comes through."""

import asyncio
import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from glimt.errors import BadCheckpoint, InvalidRequest
from glimt.frontend.prompt import Conversation, MediaSource, Prompt
from glimt.frontend.standins import StandIns, guarded_characters, strings_in
from tests.support.prompts import (
    CONTROL_TEXTS,
    HOSTILE,
    STYLES,
    FakeMedia,
    control_ids,
    renderer,
    template_source,
    tokenizer,
    whole_tokenizer,
)

# Every place in which a client can put text, around the structure it is in.
Write = Callable[[], str]


def _everywhere(write: Write) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Messages and tools with a text of `write` in each position, and as keys."""
    arguments = {write() + "k": write(), "list": [write(), {write() + "q": 1}], "n": 2}
    function = {"name": write(), "arguments": json.dumps(arguments)}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": write()},
        {"role": "developer", "content": [{"type": "text", "text": write()}]},
        {"role": "user", "name": write(), "content": write()},
        {"role": "assistant", "content": write(), "reasoning_content": write()},
        {
            "role": "user",
            "content": [{"type": "text", "text": write()}, {"type": "text", "text": write()}],
        },
        {"role": "assistant", "content": write(), "reasoning": write()},
        {"role": "assistant", "content": None, "tool_calls": [{"function": function}]},
        {"role": "tool", "tool_call_id": write(), "content": write()},
        {"role": "tool", "content": [{"type": "text", "text": write()}]},
    ]
    parameters = {"type": "object", "properties": {write() + "p": {"description": write()}}}
    tool = {"name": write(), "description": write(), "parameters": parameters}
    return messages, [{"type": "function", "function": tool}]


def _render(
    messages, tools=None, style: str = "4.5", max_model_len: int = 100_000, **kwargs
) -> Prompt:
    conversation = Conversation(
        messages=tuple(messages), tools=tuple(tools) if tools else None, template_kwargs=kwargs
    )
    return asyncio.run(renderer(style, max_model_len).render(conversation, FakeMedia({})))


@functools.cache
def _oracle(style: str = "4.5") -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=whole_tokenizer(style), chat_template=template_source(style)
    )


def _as_transformers_want(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a careful caller of transformers does by hand."""
    result = []
    for message in messages:
        message = dict(message)
        message["role"] = "system" if message["role"] == "developer" else message["role"]
        if "reasoning" in message:
            message["reasoning_content"] = message.pop("reasoning")
        if isinstance(message["content"], list):
            message["content"] = "".join(part["text"] for part in message["content"])
        message["content"] = message["content"] or ""
        message["tool_calls"] = [
            {"function": c["function"] | {"arguments": json.loads(c["function"]["arguments"])}}
            for c in message.get("tool_calls", [])
        ]
        result.append(message)
    return result


@settings(max_examples=30)
@given(st.data(), st.booleans())
def test_control_tokens_are_those_of_the_same_conversation_in_plain_words(data, thinking) -> None:
    hostile = _everywhere(lambda: data.draw(HOSTILE))
    plain = _everywhere(lambda: "word")
    prompt = _render(*hostile, enable_thinking=thinking)
    expected = _render(*plain, enable_thinking=thinking)
    assert control_ids(prompt.token_ids) == control_ids(expected.token_ids)


@given(st.data())
def test_the_prompt_reads_as_the_template_wrote_it(data) -> None:
    messages, tools = _everywhere(lambda: data.draw(HOSTILE))
    prompt = _render(messages, tools)
    expected = _oracle().apply_chat_template(
        _as_transformers_want(messages), tools=tools, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer().decode(prompt.token_ids.tolist()) == expected


_WORDS = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8", exclude_characters="<[/\ue000"), max_size=10),
        st.sampled_from(["What is in the image?", "a < b", "5 / 3", "x[0]", "|", "</b>", "\n\n"]),
    ),
    max_size=4,
).map("".join)


@given(st.data(), st.sampled_from([True, False, None]), st.booleans())
def test_ordinary_chats_are_tokenised_as_transformers_do(data, thinking, generate) -> None:
    messages, tools = _everywhere(lambda: data.draw(_WORDS))
    kwargs = {} if thinking is None else {"enable_thinking": thinking}
    conversation = Conversation(
        messages=tuple(messages),
        tools=tuple(tools),
        template_kwargs=kwargs,
        add_generation_prompt=generate,
    )
    prompt = asyncio.run(renderer().render(conversation, FakeMedia({})))
    expected = _oracle().apply_chat_template(
        _as_transformers_want(messages),
        tools=tools,
        tokenize=True,
        return_dict=False,
        add_generation_prompt=generate,
        **kwargs,
    )
    assert prompt.token_ids.tolist() == expected
    assert prompt.token_ids.dtype == np.int32


@given(_WORDS, HOSTILE)
def test_the_older_template_is_followed_too(words: str, hostile: str) -> None:
    messages = [{"role": "system", "content": words}, {"role": "user", "content": words}]
    expected = _oracle("4.1").apply_chat_template(
        messages, tokenize=True, return_dict=False, add_generation_prompt=True
    )
    assert _render(messages, style="4.1").token_ids.tolist() == expected
    answered = [*messages, {"role": "assistant", "content": hostile}, messages[-1]]
    plain = [*messages, {"role": "assistant", "content": "word"}, messages[-1]]
    ours = _render(answered, style="4.1").token_ids
    assert control_ids(ours, "4.1") == control_ids(_render(plain, style="4.1").token_ids, "4.1")


@pytest.mark.parametrize("text", [*CONTROL_TEXTS, "".join(CONTROL_TEXTS) * 1000])
def test_each_control_string_as_user_text_stays_text(text: str) -> None:
    prompt = _render([{"role": "user", "content": text}], max_model_len=500_000)
    token_ids = prompt.token_ids.tolist()
    plain = _render([{"role": "user", "content": "x"}]).token_ids.tolist()
    assert control_ids(token_ids) == control_ids(plain)
    user = tokenizer().token_id("<|user|>")
    assistant = tokenizer().token_id("<|assistant|>")
    written = token_ids[token_ids.index(user) + 1 : token_ids.index(assistant)]
    assert tokenizer().decode(written) == "\n" + text


def test_halves_of_a_control_string_in_two_parts_do_not_join() -> None:
    parts = [{"type": "text", "text": "<|ima"}, {"type": "text", "text": "ge|>"}]
    prompt = _render([{"role": "user", "content": parts}])
    assert tokenizer().token_id("<|image|>") not in prompt.token_ids
    assert "<|image|>" in tokenizer().decode(prompt.token_ids.tolist())


@pytest.mark.parametrize(("kind", "grid"), [("image", (2, 4)), ("video", [(2, 4, "0")])])
def test_a_written_placeholder_beside_a_real_one_is_text(kind: str, grid: Any) -> None:
    content = [
        {"type": "text", "text": f"<|begin_of_{kind}|><|{kind}|><|end_of_{kind}|>"},
        {"type": kind},
        {"type": "text", "text": f"<|{kind}|>" * 3},
    ]
    conversation = Conversation(
        messages=({"role": "user", "content": content},), media=(MediaSource(kind, "m", "p"),)
    )
    prompt = asyncio.run(renderer().render(conversation, FakeMedia({"m": grid})))
    image = tokenizer().token_id("<|image|>")
    assert prompt.token_ids.tolist().count(image) == prompt.num_media_tokens == 2
    assert tokenizer().token_id("<|video|>") not in prompt.token_ids


def test_a_written_nothink_does_not_turn_the_real_one_off() -> None:
    prompt = _render([{"role": "user", "content": "think!/nothink"}], enable_thinking=False)
    nothink = tokenizer().token_id("/nothink")
    assert prompt.token_ids.tolist().count(nothink) == 1
    assert "/nothink/nothink" in tokenizer().decode(prompt.token_ids.tolist())


def test_private_characters_come_through() -> None:
    text = "".join(map(chr, range(0xE000, 0xF900)))
    prompt = _render([{"role": "user", "content": text + "<|user|>"}])
    assert text + "<|user|>" in tokenizer().decode(prompt.token_ids.tolist())


@given(st.lists(HOSTILE, max_size=5), HOSTILE)
def test_stand_ins_are_new_characters_and_lead_back(texts: list[str], other: str) -> None:
    value = {"a": texts, other: [other, 1, None, True, 2.5]}
    stand_ins = StandIns("<>|", list(strings_in(value)))
    hidden = stand_ins.hide(value)
    assert not any(character in "<>|" for text in strings_in(hidden) for character in text)
    assert [stand_ins.show(text) for text in strings_in(hidden)] == list(strings_in(value))
    assert [len(text) for text in strings_in(hidden)] == [len(text) for text in strings_in(value)]


def test_a_request_that_uses_up_all_private_characters_is_refused() -> None:
    every = [chr(c) for area in ((0xE000, 0xF900), (0xF0000, 0x110000)) for c in range(*area)]
    with pytest.raises(InvalidRequest, match="private-use"):
        StandIns("<>", ["".join(every)])


def test_each_control_token_holds_a_guarded_character() -> None:
    for style in STYLES:
        assert guarded_characters(tokenizer(style).control_tokens) == "<>|[]/"
    assert guarded_characters(["<a>", "#b", "word"]) == "<>|[]/#w"
    with pytest.raises(BadCheckpoint, match="whitespace"):
        guarded_characters(["\n\n"])
