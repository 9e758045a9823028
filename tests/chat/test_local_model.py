"""A chat with a model of this machine: real servers, on the tiny random checkpoint."""

import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from glimt.chat.image_tokens import image_token_counter
from tests.chat.conftest import CHAT, Piped, Start
from tests.support.pty_session import CTRL_D, PtySession
from tests.support.serving import Serving

PROMPT = r"> \x1b\[0m"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "red.png"
    Image.new("RGB", (84, 56), "red").save(file)
    return file


def family_of(chat: PtySession) -> list[psutil.Process]:
    """The server that the chat has started, and the server's own processes."""
    return psutil.Process(chat.process.pid).children(recursive=True)


@pytest.mark.slow  # Ctrl-C within an answer, without a server, is in test_session.py
def test_a_chat_with_a_server_that_runs(
    serving: Serving, start: Start, picture: Path, tmp_path: Path
) -> None:
    arguments = ("--base-url", serving.url, "--image", str(picture), "--temperature", "1")
    with start(*arguments, "--max-tokens", "3000", "--seed", "3") as chat:
        chat.expect("tiny at ")
        chat.expect(PROMPT)
        chat.type("What is it?\r")
        chat.expect(r"\r\nWhat is it\?|What is it\?\r\n")
        chat.expect(r"\w\w\w")  # the answer has begun: at the prompt Ctrl-C means something else
        chat.interrupt(r"· stopped|stopped before")
        chat.expect(PROMPT)
        chat.type("/image /missing.png\r")
        chat.expect("there is no file /missing.png")
        chat.type(CTRL_D)
        assert chat.ended() == 0


def test_what_the_server_refuses_is_told_with_the_field(serving: Serving, piped: Piped) -> None:
    lines = "/image data:image/png;base64,AAAA\nWhat?\nAnd now?\n"
    ended = piped(lines, "--base-url", serving.url, "--max-tokens", "5")
    assert "[field messages[0].content[0].image_url]" in ended.errors
    assert ended.out.strip()
    assert ended.status == 1


def test_a_local_model_is_served_for_as_long_as_the_chat(
    checkpoint: Path, start: Start, picture: Path, tmp_path: Path
) -> None:
    with start(str(checkpoint), "--max-tokens", "8", "--image", str(picture)) as chat:
        chat.expect(r"starting \S+moe")
        chat.expect(f"{checkpoint} at http://127")
        chat.expect(r"84 × 56, 1 kB, \d+ tokens")
        chat.expect(PROMPT)
        chat.type("What is it?\r")
        chat.expect(r"8 tokens · first after")
        chat.expect(PROMPT)
        family = family_of(chat)
        assert len(family) >= 4
        chat.type("/quit\r")
        assert chat.ended() == 0
    assert psutil.wait_procs(family, 20)[1] == []
    assert list((tmp_path / "state" / "glimt").glob("serve-*")) == []


@pytest.mark.slow
def test_a_chat_that_is_killed_takes_its_server_with_it(checkpoint: Path, start: Start) -> None:
    with start(str(checkpoint)) as chat:
        chat.expect(r"starting \S+moe")
        while len(family := family_of(chat)) < 3:  # the supervisor has children
            assert chat.process.poll() is None
            time.sleep(0.05)
        chat.process.send_signal(signal.SIGKILL)
        chat.process.wait(10)
        assert psutil.wait_procs(family, 20)[1] == []


def test_a_start_that_is_interrupted_leaves_nothing(checkpoint: Path, start: Start) -> None:
    with start(str(checkpoint)) as chat:
        chat.expect(r"starting \S+moe")
        family = family_of(chat)
        chat.interrupt(r"\r\x1b\[2K")
        assert chat.ended() == 130
        assert psutil.wait_procs(family, 20)[1] == []


def test_a_server_that_does_not_start_leaves_its_log(
    environment: dict[str, str], tmp_path: Path
) -> None:
    ended = subprocess.run(
        [*CHAT, "/no/such/model", "--once", "Hi"], env=environment, capture_output=True, timeout=60
    )
    assert ended.returncode == 2
    [log] = (tmp_path / "state" / "glimt").glob("serve-*.log")
    assert str(log).encode() in ended.stderr
    assert b"there is no folder '/no/such/model'" in ended.stderr
    assert b"there is no folder '/no/such/model'" in log.read_bytes()


def test_tokens_are_foretold_by_the_checkpoints_own_numbers(
    checkpoint: Path, serving: Serving, piped: Piped, tmp_path: Path
) -> None:
    count = image_token_counter(str(checkpoint))
    sizes = [(84, 56), (500, 20), (2000, 1500)]
    for index, size in enumerate(sizes):
        file = tmp_path / f"{index}.png"
        Image.new("RGB", size).save(file)
        lines = f"/image {file}\nWhat?\n"
        assert piped(lines, "--base-url", serving.url, "--max-tokens", "1").status == 0

    def told() -> list[int]:
        found = re.findall(r"media_tokens=(\d+)", serving.log.read_text())
        return [int(each) for each in found[-len(sizes) :]]

    serving.wait_for(lambda: told() == [count(*size) for size in sizes], 10)
    assert count(100_000, 100) is None  # more extreme than the model takes
    assert image_token_counter("owner/name")(84, 56) is None
    assert image_token_counter(str(tmp_path))(84, 56) is None
