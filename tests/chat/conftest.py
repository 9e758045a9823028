"""What chats under test see of the world: a state folder of their own, a known terminal, a server
that says what it is told to, a picture."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from glimt.cli import main
from tests.support.pty_session import PtySession
from tests.support.scripted_server import ScriptedServer

CHAT = [sys.executable, "-m", "glimt", "chat"]


@dataclass
class Ended:
    """What a command left behind."""

    status: int
    out: str
    errors: str


Start = Callable[..., PtySession]
Piped = Callable[..., Ended]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    variables = {name: text for name, text in os.environ.items() if not name.startswith("GLIMT_")}
    for name in ("NO_COLOR", "LC_ALL", "OPENAI_API_KEY"):
        variables.pop(name, None)
    known = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}
    return {**variables, **known, "XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def start(environment: dict[str, str]) -> Start:
    """Starts `glimt chat` with arguments at a terminal."""

    def start(*arguments: str, **variables: str) -> PtySession:
        return PtySession([*CHAT, *arguments], {**environment, **variables})

    return start


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Piped:
    """Runs `glimt chat` with a text at its standard input."""

    def piped(text: str, *arguments: str) -> Ended:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        with pytest.raises(SystemExit) as ended:
            main(["chat", *arguments])
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return piped


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer("modest-1") as server:
        yield server


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "red.png"
    Image.new("RGB", (4, 2), "red").save(file)
    return file
