"""Messages brought into the one form that templates handle."""

import asyncio
from typing import Any

import pytest

from glimt.errors import InvalidRequest
from glimt.frontend.prompt import Conversation, Prompt
from tests.support.prompts import FakeMedia, renderer, tokenizer


def _run(conversation: Conversation, style: str = "4.5") -> Prompt:
    return asyncio.run(renderer(style).render(conversation, FakeMedia({})))


def _history(message: dict[str, Any], style: str = "4.5") -> str:
    """How an assistant's message after the last user turn is written."""
    messages = ({"role": "user", "content": "q"}, {"role": "assistant"} | message)
    conversation = Conversation(messages=messages, add_generation_prompt=False)
    prompt = _run(conversation, style=style)
    return tokenizer(style).decode(prompt.token_ids.tolist()).split("<|assistant|>")[1]


@pytest.mark.parametrize(
    ("message", "written"),
    [
        ({"content": "a"}, "\n<think></think>\na"),
        ({"content": None}, "\n<think></think>"),
        ({"content": "<think>why</think>\na"}, "\n<think>why</think>\na"),
        ({"content": "why\n</think>\n\na"}, "\n<think>why</think>\na"),
        ({"content": "a", "reasoning": "why"}, "\n<think>why</think>\na"),
        ({"content": "a", "reasoning_content": " why "}, "\n<think>why</think>\na"),
        (
            {
                "content": [
                    {"type": "text", "text": "<think>w</think>"},
                    {"type": "text", "text": "a"},
                ]
            },
            "\n<think>w</think>\na",
        ),
    ],
)
def test_thoughts_of_earlier_answers_are_taken_apart(message, written) -> None:
    assert _history(message) == written


def test_thoughts_given_twice_are_not_guessed_at() -> None:
    text = _history({"content": "x</think>y", "reasoning_content": "why"})
    assert text == "\n<think>why</think>\nx</think>y"


def test_the_older_generation_gets_answers_without_thoughts_and_tags() -> None:
    message = {"content": "<think>why</think><answer>a</answer>"}
    assert _history(message, style="4.1") == "\na"
    assert _history({"content": "<answer>\na\n</answer>"}, style="4.1") == "\na"


def _call(arguments: Any) -> dict[str, Any]:
    return {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ("", ""),
        ("{}", ""),
        ({"a": "b"}, "<arg_key>a</arg_key>\n<arg_value>b</arg_value>\n"),
        ('{"a": [1, "æ"]}', '<arg_key>a</arg_key>\n<arg_value>[1, "æ"]</arg_value>\n'),
    ],
)
def test_arguments_of_calls_become_keys_and_values(arguments, written) -> None:
    expected = f"\n<think></think>\n<tool_call>f\n{written}</tool_call>"
    assert _history(_call(arguments)) == expected


@pytest.mark.parametrize("arguments", ["{", "[1]", "null", '{"a": NaN}', "[" * 100_000, 3, None])
def test_arguments_that_are_no_json_object_are_named(arguments) -> None:
    with pytest.raises(InvalidRequest, match=r"messages\[1\]\.tool_calls\[0\]") as caught:
        _history(_call(arguments))
    assert caught.value.param == "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "image", "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": ["user"], "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
        ({"role": "assistant", "content": "", "tool_calls": "f"}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": "", "tool_calls": [3]}, "messages[0].tool_calls[0]"),
    ],
)
def test_messages_that_templates_would_drop_or_misprint_are_refused(message, param) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _run(Conversation(messages=(message,)))
    assert caught.value.param == param
