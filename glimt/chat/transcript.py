"""A conversation as a file: Markdown for people, JSON for programs."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from glimt.chat.conversation import Conversation, Turn
from glimt.chat.text import harmless
from glimt.errors import GlimtError

FORMS = (".md", ".json")


class NotSaved(GlimtError):
    """The file was not written; the message says why."""


def save(conversation: Conversation, model: str, file: Path, *, overwrite: bool) -> None:
    """Write the file whole or not at all. Raises NotSaved."""
    if file.suffix.lower() not in FORMS:
        raise NotSaved(f"{file}: the name must end in .md (Markdown) or .json (the API's messages)")
    if file.exists() and not overwrite:
        raise NotSaved(f"{file} exists; choose another name")
    write = as_json if file.suffix.lower() == ".json" else as_markdown
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=file.absolute().parent, prefix=f".{file.name}.", delete=False, encoding="utf-8"
        ) as stream:
            stream.write(write(conversation, model))
        os.replace(stream.name, file)
    except OSError as error:
        raise NotSaved(f"{file} cannot be written: {error.strerror}") from None


def as_json(conversation: Conversation, model: str) -> str:
    """An object whose `model` and `messages` can be sent as they are; media are data: URLs."""
    messages: list[dict[str, Any]] = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    for turn in conversation.turns:
        reply = turn.reply.message()
        if turn.reply.reasoning:
            reply["reasoning"] = turn.reply.reasoning
        messages += (turn.question.message(), reply)
    # ASCII, so that halves of surrogate pairs in a reply can be written at all.
    return json.dumps({"model": model, "messages": messages}, indent=2) + "\n"


def as_markdown(conversation: Conversation, model: str) -> str:
    """Headings for who speaks, thoughts as quotations, media by their names."""
    parts = [f"# A conversation with {harmless(model)}"]
    if conversation.system:
        parts.append(f"**System:** {harmless(conversation.system)}")
    for turn in conversation.turns:
        parts += _markdown_turn(turn)
    return "\n\n".join(parts) + "\n"


def _markdown_turn(turn: Turn) -> list[str]:
    parts = ["## User"]
    parts += [f"*{each.kind}: {harmless(each.name)}*" for each in turn.question.attachments]
    parts += [harmless(turn.question.text), "## Assistant"]
    if turn.reply.reasoning:
        lines = harmless(turn.reply.reasoning).strip().splitlines()
        parts.append("\n".join(f"> {line}".rstrip() for line in lines))
    parts.append(harmless(turn.reply.content).strip())
    if turn.reply.finish_reason is None:
        parts.append("*(stopped)*")
    return parts
