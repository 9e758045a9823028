"""A task as a chat request: OpenAI messages, every file as a data: URL."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import pybase64

from glimt.evaluation.replies import Json, Question
from glimt.evaluation.tasks import MediaFiles, Task, media_file, media_files
from glimt.evaluation.wishes import EvalWishes

_SUBTYPES: Mapping[str, str] = {
    ".jpg": "jpeg",
    ".tif": "tiff",
    ".mkv": "x-matroska",
    ".mov": "quicktime",
}


def thinks(task: Task, wishes: EvalWishes) -> bool:
    """Whether the model is asked to think."""
    return task.thinking if wishes.thinking == "task" else wishes.thinking == "on"


def question_of(
    task: Task, files: MediaFiles, wishes: EvalWishes, top_logprobs: int | None = None
) -> Question:
    """What is asked. Reads the task's files."""
    return Question(
        messages=_messages(task, files),
        tools=task.tools,
        thinking=thinks(task, wishes),
        max_tokens=wishes.max_tokens,
        temperature=wishes.temperature,
        seed=wishes.seed,
        top_logprobs=top_logprobs,
    )


def text_of(task: Task) -> str:
    """The question as a person reads it: of a conversation, what the user said last."""
    if task.question is not None:
        return task.question
    asked = [message for message in task.messages if message.get("role") == "user"]
    return _text(asked[-1], picture="") if asked else ""


def transcript_of(task: Task) -> list[str]:
    """The whole conversation where it is more than one question: a line for each message."""
    if len(task.messages) < 2:
        return [f"system: {task.system}"] if task.system is not None else []
    return [f"{message.get('role')}: {_text(message)}" for message in task.messages]


def _text(message: Json, picture: str = "(picture)") -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [
        picture if media_file(part) else part.get("text") or ""
        for part in parts
        if isinstance(part, dict)
    ]
    calls = message.get("tool_calls") or []
    texts += [str(call.get("function", call)) for call in calls if isinstance(call, dict)]
    return " ".join(text for text in texts if text)


def _messages(task: Task, files: MediaFiles) -> list[Json]:
    if task.messages:
        return [_with_media(message, files) for message in task.messages]
    parts = [_part(kind, _data_url(kind, name, files)) for kind, name in media_files(task)]
    parts.append({"type": "text", "text": task.question})
    system = [{"role": "system", "content": task.system}] if task.system is not None else []
    return [*system, {"role": "user", "content": parts}]


def _with_media(message: Json, files: MediaFiles) -> Json:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_part_with_media(part, files) for part in content]}


def _part_with_media(part: Any, files: MediaFiles) -> Any:
    file = media_file(part)
    return part if file is None else _part(file[0], _data_url(*file, files))


def _part(kind: str, url: str) -> Json:
    return {"type": kind, kind: {"url": url}}


def _data_url(kind: str, name: str, files: MediaFiles) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    subtype = _SUBTYPES.get(suffix, suffix.removeprefix(".") or "octet-stream")
    main_type = kind.removesuffix("_url")
    if main_type == "video" and subtype == "gif":
        main_type = "image"  # a moving GIF has no other name
    content = pybase64.b64encode(files.read(name)).decode("ascii")
    return f"data:{main_type}/{subtype};base64,{content}"
