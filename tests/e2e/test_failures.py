"""Processes die; the server does not, and nothing is left behind."""

import json
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.serving import Serving

LONG = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Go on."}],
    "max_tokens": 3000,
    "ignore_eos": True,
    "stream": True,
}
SHORT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2}


@pytest.fixture(scope="module")
def breakable(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with Serving(checkpoint, "--shutdown-timeout", "60", log=log) as serving:
        yield serving


def post(serving: Serving, body: dict[str, object]) -> urllib.request.Request:
    return urllib.request.Request(
        f"{serving.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )


def status_of(serving: Serving, path: str = "/health") -> int:
    try:
        with urllib.request.urlopen(serving.url + path, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def folders_of(serving: Serving) -> list[Path]:
    """Socket folders of this server, not of others that run beside it."""
    files = Path(tempfile.gettempdir()).glob("glimt-*/pid")
    return [file.parent for file in files if file.read_text().startswith(f"{serving.process.pid} ")]


def answers(serving: Serving) -> bool:
    try:
        with urllib.request.urlopen(post(serving, SHORT), timeout=20) as response:
            return bool(json.load(response)["choices"][0]["finish_reason"])
    except OSError:
        return False


def test_a_dead_engine_ends_open_streams_with_an_error_and_is_replaced(
    breakable: Serving,
) -> None:
    with urllib.request.urlopen(post(breakable, LONG), timeout=60) as response:
        response.readline()
        breakable.child("engine").kill()
        events = [line for line in response.read().decode().splitlines() if line]
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "not_ready"
    assert not any('"finish_reason":"' in event for event in events)
    breakable.wait_for(lambda: status_of(breakable) == 503, 5)
    breakable.wait_for(lambda: status_of(breakable) == 200, 60)
    assert answers(breakable)


def test_a_dead_media_worker_is_replaced(breakable: Serving) -> None:
    before = breakable.child("media_worker")
    before.kill()
    before.wait(5)
    breakable.wait_for(lambda: "media-0 is back" in breakable.log.read_text(), 30)
    assert answers(breakable)


def test_a_dead_server_is_replaced_while_the_engine_stays(breakable: Serving) -> None:
    engine = breakable.child("engine")
    breakable.child("server").kill()
    breakable.wait_for(lambda: answers(breakable), 60)
    assert breakable.child("engine").pid == engine.pid


def test_sigterm_lets_a_running_stream_finish_and_leaves_nothing(breakable: Serving) -> None:
    children = breakable.children()
    folders = folders_of(breakable)
    body = {**LONG, "max_tokens": 200}
    lines: list[str] = []
    started = threading.Event()

    def read() -> None:
        with urllib.request.urlopen(post(breakable, body), timeout=60) as response:
            lines.append(response.readline().decode())
            started.set()
            lines.extend(response.read().decode().splitlines())

    reader = threading.Thread(target=read)
    reader.start()
    assert started.wait(30)
    assert breakable.stop(90) == 0
    reader.join(30)
    assert lines[-1] == "" or lines[-1] == "data: [DONE]"
    assert any('"finish_reason":"length"' in line for line in lines)
    assert not [child for child in children if child.is_running()]
    assert folders
    assert not any(folder.exists() for folder in folders)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "glimt", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_a_taken_port_is_said_before_anything_is_loaded(checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run(str(checkpoint), "--port", port)
    assert result.returncode == 2
    assert f"127.0.0.1:{port}" in result.stderr


def test_a_missing_checkpoint_is_said(tmp_path: Path) -> None:
    result = run(str(tmp_path / "nothing"), "--port", "0")
    assert result.returncode == 2
    assert "nothing" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_damaged_checkpoint_ends_the_start_with_the_tensors_name(
    checkpoint: Path, tmp_path: Path
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    result = run(str(tmp_path), "--port", "0", "--media-workers", "1")
    assert result.returncode == 2
    assert shard.name in result.stderr
    assert "Traceback" not in result.stderr
