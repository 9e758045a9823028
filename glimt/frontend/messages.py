"""Messages as templates of this family want them, from messages as clients send them.

Templates print what they do not expect (`None`, a list) or drop it in silence (a part of an unknown
type, an unknown role), so everything is brought into the one form that they all handle.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glimt.errors import InvalidRequest
from glimt.frontend.standins import StandIns

# Some templates write the role between the signs of a control token: it must be one of these.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_ROLES["tool"] = "tool"
_PART_TYPES = ("text", "image", "video")


def template_messages(
    messages: Sequence[Mapping[str, Any]], *, answer_tags: bool
) -> list[dict[str, Any]]:
    """The messages with checked roles and parts, answers taken apart, call arguments as mappings.

    `answer_tags`: the model wraps its answers in `<answer>` (GLM-4.1V), which history must not
    repeat. Raises InvalidRequest naming the message.
    """
    return [
        _template_message(message, f"messages[{index}]", answer_tags)
        for index, message in enumerate(messages)
    ]


def media_kinds(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """image or video for each media part, in order."""
    return [
        part["type"]
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] != "text"
    ]


def hide_messages(messages: list[dict[str, Any]], stand_ins: StandIns) -> list[dict[str, Any]]:
    """The messages with stand-ins in all that a client wrote, which the words of their structure
    (roles, types, keys) are not."""

    def hide(message: dict[str, Any]) -> dict[str, Any]:
        hidden = {key: stand_ins.hide(value) for key, value in message.items()}
        hidden["role"] = message["role"]
        if isinstance(message["content"], list):
            hidden["content"] = [
                {key: value if key == "type" else stand_ins.hide(value) for key, value in p.items()}
                for p in message["content"]
            ]
        if "tool_calls" in message:
            hidden["tool_calls"] = [
                call | {"function": {k: stand_ins.hide(v) for k, v in call["function"].items()}}
                for call in message["tool_calls"]
            ]
        return hidden

    return [hide(message) for message in messages]


def flat_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose lists of parts have become one text each, for templates that take no lists.

    Whatever a client wrote must be hidden already: the marks of media are put between.
    """
    return [
        message | {"content": "\n".join(map(_flat_part, message["content"]))}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def listed_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose texts have become lists of one part, for templates that take nothing else."""
    return [
        message | {"content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in messages
    ]


def _flat_part(part: dict[str, Any]) -> str:
    kind = part["type"]
    if kind == "text":
        text: str = part["text"]
        return text
    return f"<|begin_of_{kind}|><|{kind}|><|end_of_{kind}|>"


def _template_message(message: Mapping[str, Any], path: str, answer_tags: bool) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(f"{path}.role is not a role of a conversation", param=f"{path}.role")
    result: dict[str, Any] = {"role": _ROLES[role], "content": _content(message, path)}
    if role == "assistant":
        _add_answer(result, message, path, answer_tags)
    if isinstance(message.get("name"), str):
        result["name"] = message["name"]
    return result


def _content(message: Mapping[str, Any], path: str) -> str | list[dict[str, Any]]:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list | tuple):
        raise InvalidRequest(f"{path}.content must be text or a list", param=f"{path}.content")
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(content):
        where = f"{path}.content[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _PART_TYPES or (kind == "text" and not isinstance(part.get("text"), str)):
            raise InvalidRequest(f"{where} is not a text, image or video part", param=where)
        parts.append({"type": kind, "text": part["text"]} if kind == "text" else {"type": kind})
    # Answers are searched for thoughts, and some templates print a tool result's list as it is.
    if message["role"] in ("assistant", "tool") and all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _add_answer(
    result: dict[str, Any], message: Mapping[str, Any], path: str, answer_tags: bool
) -> None:
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    content = result["content"]
    if isinstance(content, str):
        if not isinstance(reasoning, str) and "</think>" in content:
            reasoning, content = _split_thought(content)
        if answer_tags:
            content = content.strip().removeprefix("<answer>").removesuffix("</answer>").strip()
        result["content"] = content
    if isinstance(reasoning, str):
        result["reasoning_content"] = reasoning
    calls = message.get("tool_calls")
    if calls:
        if not isinstance(calls, list | tuple):
            text = f"{path}.tool_calls must be a list"
            raise InvalidRequest(text, param=f"{path}.tool_calls")
        result["tool_calls"] = [
            _tool_call(call, f"{path}.tool_calls[{index}]") for index, call in enumerate(calls)
        ]


def _split_thought(content: str) -> tuple[str, str]:
    """Thought and answer of an answer that holds both, cut where GLM's templates cut it."""
    thought, answer = content.split("</think>")[0], content.split("</think>")[-1]
    return thought.rstrip("\n").split("<think>")[-1].lstrip("\n"), answer.lstrip("\n")


def _tool_call(call: Any, path: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{path}.function.name is missing", param=path)
    arguments = _arguments(function.get("arguments"), path)
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _arguments(arguments: Any, path: str) -> dict[str, Any]:
    """The mapping that templates iterate over; clients send it as JSON text."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, parse_constant=_refuse_constant) if arguments else {}
        except (ValueError, RecursionError):
            arguments = None
    if arguments is None or not isinstance(arguments, dict):
        text = f"{path}.function.arguments must be a JSON object, as text"
        raise InvalidRequest(text, param=f"{path}.function.arguments")
    return arguments


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
