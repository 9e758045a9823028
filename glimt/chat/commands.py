"""The commands of a chat: what they are called, and which one a line is."""

import difflib
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from glimt.errors import GlimtError


class BadCommand(GlimtError):
    """The line is no command; the message names what it could have been."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command as /help shows it."""

    name: str
    argument: str
    help: str
    aliases: tuple[str, ...] = ()


COMMANDS = (
    Command("image", "FILE|URL …", "attach images to the next question"),
    Command("video", "FILE|URL …", "attach videos to the next question"),
    Command("clear", "", "forget the conversation and what is attached"),
    Command("retry", "", "ask the last question again"),
    Command("system", "[TEXT|off]", "set, remove or show the system text"),
    Command("thinking", "[on|off]", "let the model think before it answers, or not"),
    Command("save", "FILE", "save as Markdown (.md) or as the API's messages (.json)"),
    Command("help", "", "this list", ("?",)),
    Command("quit", "", "leave (so does Ctrl-D)", ("exit", "q")),
)
_FILE_COMMANDS = ("image", "video", "save")
_NAMES = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}

HELP = "\n".join(
    [
        *(f"  /{each.name + ' ' + each.argument:<20} {each.help}" for each in COMMANDS),
        "  A backslash at the end of a line continues it; // begins a text that starts with /.",
        "  Ctrl-C stops an answer and keeps what came of it.",
    ]
)


def parse(line: str) -> tuple[str, str]:
    """(name, argument) of a line that begins with a slash. Raises BadCommand."""
    word, _, argument = line.removeprefix("/").partition(" ")
    command = _NAMES.get(word.lower())
    if command is None:
        raise BadCommand(_unknown(line, word))
    argument = argument.strip()
    if argument and not command.argument:
        raise BadCommand(f"/{command.name} takes nothing after it")
    if command.name in _FILE_COMMANDS and not argument:
        raise BadCommand(f"/{command.name} needs {command.argument.removesuffix(' …')}")
    return command.name, argument


def names_in(argument: str) -> list[str]:
    """The files and addresses of an argument: one with spaces in its name, or several, quoted."""
    if "://" not in argument and Path(argument).expanduser().exists():
        return [argument]
    try:
        return shlex.split(argument)
    except ValueError:  # a quotation mark alone
        return [argument]


def complete(line: str) -> list[str]:
    """What the last word of an unfinished line can become: commands, and files after some."""
    if not line.startswith("/"):
        return []
    word, space, rest = line.partition(" ")
    if not space:
        return [f"/{each.name} " for each in COMMANDS if each.name.startswith(word[1:])]
    if word[1:] not in _FILE_COMMANDS:
        return []
    return _files(rest.rpartition(" ")[2])


def _files(beginning: str) -> list[str]:
    folder, slash, start = beginning.rpartition("/")
    try:
        entries = sorted(os.scandir(Path(folder + slash or ".").expanduser()), key=lambda e: e.name)
    except OSError:
        return []
    return [
        folder + slash + entry.name + ("/" if entry.is_dir() else "")
        for entry in entries
        if entry.name.startswith(start) and (start or not entry.name.startswith("."))
    ]


def _unknown(line: str, word: str) -> str:
    if Path(line).is_file():
        return f"/{word} is no command; to send a file: /image {line}"
    near = difflib.get_close_matches(word.lower(), _NAMES, n=1, cutoff=0.5)
    hint = f"did you mean /{near[0]}?" if near else "/help lists them"
    return f"/{word} is no command; {hint}"
