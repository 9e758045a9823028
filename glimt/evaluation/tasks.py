"""Tasks: read from JSONL or a zip, checked line by line before anything is asked.

docs/evaluation.md describes the fields. Media are named relative to the file and lie below its
folder, or beside tasks.jsonl in the zip.
"""

import codecs
import difflib
import hashlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol, get_args

import msgspec

from glimt.errors import BadSettings
from glimt.evaluation.boxes import parse_box
from glimt.evaluation.replies import Json

Metric = Literal["exact", "anls", "iou", "relaxed", "contains", "tool_call", "format"]

_MAX_LISTED = 20
_MEMBER = "tasks.jsonl"
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")  # msgspec's words
_ADDRESSES = ("data:", "http://", "https://")


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a task file."""

    id: str = ""  # default: line-N
    skill: str = "all"
    image: str | None = None
    images: list[str] = []
    video: str | None = None
    question: str | None = None
    answer: Any = None
    metric: Metric = "exact"
    thinking: bool = False
    tools: list[Json] = []
    messages: list[Json] = []
    choices: list[str] = []
    system: str | None = None
    meta: Any = None  # anything; is not looked at

    @property
    def pictures(self) -> list[str]:
        """Names of the images beside the question."""
        return [self.image, *self.images] if self.image is not None else self.images

    @property
    def answers(self) -> list[Any]:
        """The right answers, each as good as the others."""
        if self.metric == "tool_call":
            return self.answer if isinstance(self.answer, list) else [self.answer]
        if self.metric == "iou" and _is_box(self.answer):
            return [self.answer]
        return self.answer if isinstance(self.answer, list) else [self.answer]


class MediaFiles(Protocol):
    """The files beside the tasks."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    def read(self, name: str) -> bytes:
        """Its bytes."""


@dataclass(frozen=True)
class FolderFiles:
    """Files below a folder."""

    folder: Path

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.folder / name).is_file()

    def read(self, name: str) -> bytes:
        """Its bytes."""
        return (self.folder / name).read_bytes()


class ZipFiles:
    """Members of a zip."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names = frozenset(archive.namelist())

    def has(self, name: str) -> bool:
        """Whether there is such a member."""
        return str(PurePosixPath(name)) in self._names

    def read(self, name: str) -> bytes:
        """Its bytes."""
        return self._archive.read(str(PurePosixPath(name)))


@dataclass(frozen=True)
class TaskFile:
    """Tasks and the media that they name."""

    name: str
    sha256: str
    tasks: tuple[Task, ...]
    files: MediaFiles


def read_tasks(path: Path) -> TaskFile:
    """Read and check a .jsonl or .zip. Raises BadSettings listing lines, fields and files."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if not zipfile.is_zipfile(path):
            files: MediaFiles = FolderFiles(path.absolute().parent)
            return TaskFile(path.name, digest, _parse(path.read_bytes(), path.name, files), files)
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadSettings(f"--tasks {path}: {reason}") from None
    files = ZipFiles(archive)
    if not files.has(_MEMBER):
        raise BadSettings(f"--tasks {path}: there is no {_MEMBER} in this zip")
    where = f"{path.name}/{_MEMBER}"
    return TaskFile(path.name, digest, _parse(files.read(_MEMBER), where, files), files)


def select(tasks: Sequence[Task], skills: str | None, limit: int | None) -> list[Task]:
    """The tasks of these skills (a,b), at most `limit` of each. Raises BadSettings."""
    known = list(dict.fromkeys(task.skill for task in tasks))
    wanted = [skill.strip() for skill in skills.split(",")] if skills is not None else known
    unknown = [skill for skill in wanted if skill not in known]
    if unknown:
        raise BadSettings(
            f"--skills: there are no tasks of {', '.join(map(repr, unknown))}; "
            f"the file has {', '.join(known)}"
        )
    chosen: list[Task] = []
    taken = dict.fromkeys(known, 0)
    for task in tasks:
        if task.skill in wanted and (limit is None or taken[task.skill] < limit):
            taken[task.skill] += 1
            chosen.append(task)
    return chosen


def media_files(task: Task) -> Iterator[tuple[str, str]]:
    """(image_url or video_url, file) for each file of a task, in the order the model sees them."""
    for name in task.pictures:
        yield "image_url", name
    if task.video is not None:
        yield "video_url", task.video
    for message in task.messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if (place := media_file(part)) is not None:
                yield place


def media_file(part: Any) -> tuple[str, str] | None:
    """(kind of part, file) if this part of a message is an image or video in a file."""
    if not isinstance(part, dict):
        return None
    for kind in ("image_url", "video_url"):
        address = part.get(kind)
        if part.get("type") == kind:
            url = address.get("url") if isinstance(address, dict) else address
            if isinstance(url, str) and not url.startswith(_ADDRESSES):
                return kind, url
    return None


# ------------------------------------------------------------------------------------ checks


def _parse(data: bytes, name: str, files: MediaFiles) -> tuple[Task, ...]:
    decoder = msgspec.json.Decoder(Task)
    tasks: list[Task] = []
    problems: list[str] = []
    lines_of: dict[str, int] = {}
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            task = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            problems.append(f"line {number}: {_field_error(error)}")
            continue
        if not task.id:
            task = msgspec.structs.replace(task, id=f"line-{number}")
        if task.id in lines_of:
            problems.append(f"line {number}: field id: line {lines_of[task.id]} has it, too")
        lines_of[task.id] = number
        problems += [f"line {number}: {problem}" for problem in _problems(task, files)]
        tasks.append(task)
    if not tasks and not problems:
        problems.append("there is no task in it")
    if problems:
        more = [f"and {len(problems) - _MAX_LISTED} more"] if len(problems) > _MAX_LISTED else []
        raise BadSettings(f"--tasks {name} cannot be used:", [*problems[:_MAX_LISTED], *more])
    return tuple(tasks)


def _field_error(error: Exception) -> str:
    """msgspec's message with the field in front."""
    text, _, path = str(error).partition(" - at `$.")
    if path:
        known = f"; known are {', '.join(get_args(Metric))}" if path == "metric`" else ""
        return f"field {path.rstrip('`')}: {text}{known}"
    if (unknown := _UNKNOWN.fullmatch(text)) is not None:
        near = difflib.get_close_matches(unknown[1], Task.__struct_fields__, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown field `{unknown[1]}`; {hint}meta holds whatever is not looked at"
    return text


def _problems(task: Task, files: MediaFiles) -> Iterator[str]:
    if task.messages:
        for field in ("question", "system", "image", "images", "video"):
            if getattr(task, field):
                yield f"field {field}: it goes without messages, which hold everything"
    elif not task.question:
        yield "field question: it is missing (or messages in its place)"
    yield from _media_problems(task, files)
    yield from _answer_problems(task)


def _media_problems(task: Task, files: MediaFiles) -> Iterator[str]:
    for _, name in media_files(task):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "://" in name:
            yield f"{name!r} does not lie below the folder of the task file; media have to"
        elif not files.has(name):
            yield f"there is no file {name}"


def _answer_problems(task: Task) -> Iterator[str]:
    field = "field answer:"
    if task.metric == "format":
        return
    if task.answer is None or task.answer == []:
        yield f"{field} it is missing"
        return
    for answer in task.answers:
        if task.metric == "tool_call":
            if not _is_call(answer):
                yield f'{field} tool_call wants {{"name": …, "arguments": {{…}}}} or a list of them'
        elif task.metric == "iou":
            if not _is_box(answer) and parse_box(str(answer)) is None:
                yield f"{field} {answer!r} is no box [x1, y1, x2, y2]"
        elif isinstance(answer, bool) or not isinstance(answer, str | int | float):
            yield f"{field} {answer!r} is no text, no number, and no list of them"


def _is_call(answer: Any) -> bool:
    if not isinstance(answer, dict) or not isinstance(answer.get("name"), str):
        return False
    return set(answer) == {"name", "arguments"} and isinstance(answer["arguments"], dict)


def _is_box(answer: Any) -> bool:
    return (
        isinstance(answer, list)
        and len(answer) == 4
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in answer)
    )
