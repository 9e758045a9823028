"""One question in the words of three APIs, asked by the official clients, whole or streamed.

What differs between the APIs is only how things are called. So a question has one vocabulary here,
and what comes back is put into one as well; beyond that nothing may differ.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from tests.support.http_half import MODEL

anthropic: Any = pytest.importorskip("anthropic")
openai: Any = pytest.importorskip("openai")

APIS = ("chat", "responses", "messages")


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked; `choice` is auto, none, required, or the name of a function."""

    text: str = "hi"
    image: str | None = None
    system: str | None = None
    max_tokens: int = 100
    tools: Mapping[str, Any] = {}  # parameters, by name
    strict: bool = False
    choice: str | None = None
    parallel: bool | None = None
    schema: Any = None
    thinking: bool | None = None
    budget: int | None = None
    effort: str | None = None
    hidden: bool = False  # the thoughts are not to be shown
    stop: Sequence[str] = ()
    history: Sequence["Seen"] = ()  # answers to the same question, each followed by `result`
    result: str | None = None


@dataclass
class Seen:
    """An answer as its client shows it."""

    reasoning: str = ""
    text: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)  # name, arguments
    end: str = ""  # stop · cut · calls
    num_thoughts: int = 0  # tokens
    num_tokens: int = 0
    raw: Any = None  # as the next request sends it back
    ids: list[str] = field(default_factory=list)  # of the calls

    @property
    def said(self) -> tuple[Any, ...]:
        """All but what is the API's own."""
        counts = self.num_thoughts, self.num_tokens
        return (self.reasoning, self.text, self.calls, self.end, *counts)


class Clients:
    """The official clients of one server."""

    def __init__(self, address: str) -> None:
        # No certificates are needed, and reading them takes longer than all else.
        client: dict[str, Any] = {"api_key": "none", "max_retries": 0}
        self._openai = openai.AsyncOpenAI(
            base_url=f"{address}/v1",
            http_client=openai.DefaultAsyncHttpxClient(verify=False),
            **client,
        )
        self._anthropic = anthropic.AsyncAnthropic(
            base_url=address,
            http_client=anthropic.DefaultAsyncHttpxClient(verify=False),
            **client,
        )

    async def __aenter__(self) -> "Clients":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._openai.close()
        await self._anthropic.close()

    async def ask(self, api: str, question: Question, *, stream: bool) -> Seen:
        """The answer. Raises the official client's error."""
        if api == "messages":
            return await _messages(self._anthropic, question, stream=stream)
        one = _chat if api == "chat" else _responses
        return await one(self._openai, question, stream=stream)

    async def refusal(self, api: str, question: Question, *, stream: bool) -> Any:
        """The official client's error."""
        try:
            seen = await self.ask(api, question, stream=stream)
        except (anthropic.APIStatusError, openai.APIStatusError) as error:
            return error
        raise AssertionError(f"{api} answers {seen.said}")


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, [], ())}


def _arguments(text: str) -> Any:
    """Whole arguments as a value; what was cut has none that all APIs could show."""
    try:
        return json.loads(text)
    except ValueError:
        return {}


# ------------------------------------------------------------------------------------------ chat


async def _chat(client: Any, question: Question, *, stream: bool) -> Seen:
    fields = _given(
        model=MODEL,
        messages=_chat_messages(question),
        max_tokens=question.max_tokens,
        stop=list(question.stop),
        reasoning_effort=question.effort,
        parallel_tool_calls=question.parallel,
        tools=[
            {
                "type": "function",
                "function": _given(name=name, parameters=parameters) | _strict(question),
            }
            for name, parameters in question.tools.items()
        ],
        tool_choice=_openai_choice(question.choice, {"function": {"name": question.choice}}),
        response_format=question.schema
        and {"type": "json_schema", "json_schema": {"name": "s", "schema": question.schema}},
        extra_body=_given(
            enable_thinking=question.thinking,
            thinking_token_budget=question.budget,
            include_reasoning=False if question.hidden else None,
        ),
    )
    if stream:
        options = {"include_usage": True}
        async with client.chat.completions.stream(**fields, stream_options=options) as events:
            async for _ in events:
                pass
            got = events.current_completion_snapshot  # the final one refuses answers that were cut
    else:
        got = await client.chat.completions.create(**fields)
    (choice,) = got.choices
    message = choice.message
    calls = message.tool_calls or []
    return Seen(
        reasoning=getattr(message, "reasoning", None) or "",
        text=message.content or "",
        calls=[(call.function.name, _arguments(call.function.arguments)) for call in calls],
        end={"length": "cut", "tool_calls": "calls"}.get(
            choice.finish_reason, choice.finish_reason
        ),
        num_thoughts=got.usage.completion_tokens_details.reasoning_tokens,
        num_tokens=got.usage.completion_tokens,
        raw=message.model_dump(exclude_none=True),
        ids=[call.id for call in calls],
    )


def _chat_messages(question: Question) -> list[Any]:
    content: Any = question.text
    if question.image is not None:
        content = [
            {"type": "image_url", "image_url": {"url": question.image}},
            {"type": "text", "text": question.text},
        ]
    messages: list[Any] = [{"role": "user", "content": content}]
    if question.system is not None:
        messages.insert(0, {"role": "system", "content": question.system})
    for seen in question.history:
        messages.append(seen.raw)
        messages += [
            {"role": "tool", "tool_call_id": each, "content": question.result} for each in seen.ids
        ]
    return messages


def _strict(question: Question) -> dict[str, bool]:
    return {"strict": True} if question.strict else {}


def _openai_choice(choice: str | None, named: Any) -> Any:
    return choice if choice in (None, "auto", "none", "required") else {"type": "function", **named}


# ------------------------------------------------------------------------------------- responses


async def _responses(client: Any, question: Question, *, stream: bool) -> Seen:
    fields = _given(
        model=MODEL,
        input=_items(question),
        instructions=question.system,
        max_output_tokens=question.max_tokens,
        parallel_tool_calls=question.parallel,
        reasoning=question.effort and {"effort": question.effort},
        tools=[
            _given(type="function", name=name, parameters=parameters) | _strict(question)
            for name, parameters in question.tools.items()
        ],
        tool_choice=_openai_choice(question.choice, {"name": question.choice}),
        text=question.schema
        and {"format": {"type": "json_schema", "name": "s", "schema": question.schema}},
        extra_body=_given(
            enable_thinking=question.thinking,
            thinking_token_budget=question.budget,
            include_reasoning=False if question.hidden else None,
            stop=list(question.stop),
        ),
    )
    if stream:
        async with client.responses.stream(**fields) as events:
            got = [event async for event in events][-1].response  # completed, or incomplete
    else:
        got = await client.responses.create(**fields)
    items: dict[str, list[Any]] = {"reasoning": [], "message": [], "function_call": []}
    for item in got.output:
        items[item.type].append(item)
    calls = items["function_call"]
    end = "calls" if calls else "stop"
    return Seen(
        reasoning="".join(part.text for item in items["reasoning"] for part in item.content),
        text="".join(part.text for item in items["message"] for part in item.content),
        calls=[(call.name, _arguments(call.arguments)) for call in calls],
        end="cut" if got.status == "incomplete" else end,
        num_thoughts=got.usage.output_tokens_details.reasoning_tokens,
        num_tokens=got.usage.output_tokens,
        raw=[item.model_dump(exclude_none=True) for item in got.output],
        ids=[call.call_id for call in calls],
    )


def _items(question: Question) -> Any:
    parts: list[Any] = [{"type": "input_text", "text": question.text}]
    if question.image is not None:
        parts.insert(0, {"type": "input_image", "image_url": question.image})
    items: list[Any] = [{"role": "user", "content": parts}]
    for seen in question.history:
        items += seen.raw
        items += [
            {"type": "function_call_output", "call_id": each, "output": question.result}
            for each in seen.ids
        ]
    return items


# -------------------------------------------------------------------------------------- messages


async def _messages(client: Any, question: Question, *, stream: bool) -> Seen:
    choice: Any = {"auto": "auto", "none": "none", "required": "any"}.get(question.choice or "")
    choice = {"type": choice} if choice else {"type": "tool", "name": question.choice}
    if question.parallel is False:
        choice["disable_parallel_tool_use"] = True
    fields = _given(
        model=MODEL,
        messages=_turns(question),
        system=question.system,
        max_tokens=question.max_tokens,
        stop_sequences=list(question.stop),
        tools=[
            {"name": name, "input_schema": parameters} | _strict(question)
            for name, parameters in question.tools.items()
        ],
        tool_choice=choice if question.choice else None,
        thinking=_thinking(question),
        output_config=_given(
            effort=question.effort,
            format=question.schema and {"type": "json_schema", "schema": question.schema},
        )
        or None,
    )
    if stream:
        async with client.messages.stream(**fields) as events:
            async for _ in events:
                pass
            got = await events.get_final_message()
    else:
        got = await client.messages.create(**fields)
    blocks: dict[str, list[Any]] = {"thinking": [], "text": [], "tool_use": []}
    for block in got.content:
        blocks[block.type].append(block)
    ends = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "cut", "tool_use": "calls"}
    return Seen(
        reasoning="".join(block.thinking for block in blocks["thinking"]),
        text="".join(block.text for block in blocks["text"]),
        calls=[(block.name, block.input) for block in blocks["tool_use"]],
        end=ends[got.stop_reason],
        num_thoughts=got.usage.output_tokens_details.thinking_tokens,
        num_tokens=got.usage.output_tokens,
        raw={
            "role": "assistant",
            "content": [b.model_dump(exclude_none=True) for b in got.content],
        },
        ids=[block.id for block in blocks["tool_use"]],
    )


def _thinking(question: Question) -> Any:
    display = {"display": "omitted"} if question.hidden else {}
    if question.thinking is False:
        return {"type": "disabled"}
    if question.thinking or question.budget is not None:
        return {"type": "enabled", "budget_tokens": question.budget or 1024, **display}
    return {"type": "adaptive", **display} if question.hidden else None


def _turns(question: Question) -> list[Any]:
    blocks: list[Any] = [{"type": "text", "text": question.text}]
    if question.image is not None:
        source = {"type": "url", "url": question.image}
        blocks.insert(0, {"type": "image", "source": source})
    turns: list[Any] = [{"role": "user", "content": blocks}]
    for seen in question.history:
        turns.append(seen.raw)
        results = [
            {"type": "tool_result", "tool_use_id": each, "content": question.result}
            for each in seen.ids
        ]
        turns.append({"role": "user", "content": results})
    return turns
