"""Servers of all kinds: one that knows every answer, one that is full, one that breaks off."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from glimt.evaluation import remote
from tests.evaluation.support import TASKS, results, run_eval, write_tasks

Answer = Callable[[dict[str, Any], int], tuple[int, dict[str, Any]]]
KEY = "secret-key"


class Server(ThreadingHTTPServer):
    """Answers chat requests with `answer(body, how many came before it)`; wants KEY."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        is_known = self.headers["Authorization"] == f"Bearer {KEY}"
        body = {"data": [{"id": "oracle"}]} if is_known else {"error": {"message": "no key"}}
        self.send(200 if is_known else 401, body)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
        self.send(*self.server.answer(body, number))

    def send(self, status: int, body: dict[str, Any]) -> None:
        if status == 0:
            self.close_connection = True
            return
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Keeps quiet."""


@contextmanager
def running(answer: Answer) -> Iterator[Server]:
    with Server(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def message(task: dict[str, Any]) -> dict[str, Any]:
    """The right answer in its right form."""
    answer = task["answer"]
    if task.get("metric") == "tool_call":
        function = {"name": answer["name"], "arguments": json.dumps(answer["arguments"])}
        return {"content": None, "tool_calls": [{"type": "function", "function": function}]}
    if task.get("metric") == "iou":
        return {"content": f"<|begin_of_box|>{answer}<|end_of_box|>"}
    text = str(answer[0] if isinstance(answer, list) else answer)
    return {"content": text, "reasoning": "I look." if task.get("thinking") else None}


def oracle(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
    text = body["messages"][-1]["content"]
    text = text if isinstance(text, str) else text[-1]["text"]
    has_tools, num_media = "tools" in body, json.dumps(body["messages"][-1]).count("base64")
    [task, *_] = [
        task
        for task in TASKS
        if (task.get("question") or "What colour?") == text
        and ("tools" in task) == has_tools
        and (task["id"] != "c-1" or num_media == 1)
    ]
    choice = {"message": message(task), "finish_reason": "stop"}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}


def run(url: str, folder: Path, *more: str) -> tuple[int, dict[str, Any]]:
    tasks = write_tasks(folder / "tasks", [task for task in TASKS if task["id"] != "c-2"])
    arguments = ("--tasks", tasks, "--output", folder, "--api-key", KEY, *more)
    return run_eval("--base-url", url, *arguments), results(folder)["sides"][0]


def test_a_server_that_knows_everything_gets_everything_right(tmp_path: Path) -> None:
    with running(oracle) as server:
        status, side = run(server.url.removeprefix("http://"), tmp_path)
    assert status == 0
    assert [record["id"] for record in side["records"] if not record["is_right"]] == []
    assert side["summary"]["in_format"]["num"] == side["summary"]["in_format"]["n"] == 3
    thinking = [body["chat_template_kwargs"]["enable_thinking"] for body in server.bodies]
    assert sorted(thinking) == [False] * 5 + [True]
    assert all(body["model"] == "oracle" and body["temperature"] == 0 for body in server.bodies)
    assert KEY not in (tmp_path / "results.json").read_text()
    assert KEY not in (tmp_path / "report.html").read_text()


def test_a_full_server_is_asked_again(tmp_path: Path) -> None:
    def often_full(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        return oracle(body, number) if number % 2 else (429, {"error": {"code": "overloaded"}})

    with running(often_full) as server:
        status, side = run(server.url, tmp_path, "--concurrency", "1")
    assert status == 0
    assert side["summary"]["failures"] == {}
    assert len(server.bodies) == 2 * len(side["records"])


def test_a_server_that_goes_away_ends_the_run_with_what_it_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No task counts as wrong that nobody was there to answer."""
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.01)

    def leaving(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        if number < 3:
            return oracle(body, number)
        server.socket.close()  # nobody can connect any more, and this connection breaks off
        return 0, {}

    with running(leaving) as server:
        status, side = run(server.url, tmp_path, "--concurrency", "1")
    assert status == 1
    assert [record["is_right"] for record in side["records"]] == [True] * 3
    assert side["summary"]["failures"] == {}
    assert not side["is_complete"]
    told = capsys.readouterr()
    assert "does not answer any more (Connection refused) after 3 of 6 tasks" in told.err
    assert re.search(r"overall +3 +3 +100.0 %", told.out)
    assert "Interrupted: oracle at" in (tmp_path / "report.html").read_text()


def test_a_server_that_starts_anew_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.01)

    def stumbling(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        return oracle(body, number) if number != 2 else (0, {})

    with running(stumbling) as server:
        status, side = run(server.url, tmp_path, "--concurrency", "1")
    assert status == 0
    assert all(record["is_right"] for record in side["records"])
    assert len(server.bodies) == len(side["records"]) + 1


def test_fields_that_a_server_refuses_are_left_out_and_told(tmp_path: Path) -> None:
    def strict(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        if "chat_template_kwargs" in body:
            text = "Unrecognized request argument supplied: chat_template_kwargs"
            return 400, {"error": {"message": text}}
        if "max_tokens" in body:
            return 400, {"error": {"message": "Use 'max_completion_tokens' instead."}}
        return oracle(body, number)

    with running(strict) as server:
        status, side = run(server.url, tmp_path, "--concurrency", "2", "--max-tokens", "77")
    assert status == 0
    assert all(record["is_right"] for record in side["records"])
    assert side["facts"]["refused_fields"] == ["chat_template_kwargs", "max_tokens"]
    assert server.bodies[-1]["max_completion_tokens"] == 77
    assert len(server.bodies) <= len(side["records"]) + 2 * 2  # asked once, not for each task
    assert "without chat_template_kwargs, max_tokens" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("other", ["./nothing-here", "http://127.0.0.1:9"])
def test_what_is_compared_with_has_to_be_there_before_anything_is_asked(
    other: str, tmp_path: Path
) -> None:
    with running(oracle) as server:
        tasks = write_tasks(tmp_path)
        flags = ("--tasks", tasks, "--output", tmp_path, "--api-key", KEY, "--against", other)
        assert run_eval("--base-url", server.url, *flags) == 2
    assert server.bodies == []


def test_a_server_that_stays_full_or_breaks_off_has_failed(tmp_path: Path) -> None:
    def broken(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        if "tools" in body:
            return 503, {"error": {"code": "not_ready", "message": "starting"}}
        return (0, {}) if body["chat_template_kwargs"]["enable_thinking"] else (200, {"no": 1})

    with running(broken) as server:
        status, side = run(server.url, tmp_path)
    assert status == 1
    assert side["summary"]["failures"] == {
        "bad_response": 4,
        "connection_failed": 1,
        "not_ready": 1,
    }
    assert side["summary"]["overall"]["accuracy"]["n"] == 6


def test_a_key_that_is_refused_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(oracle) as server:
        tasks = write_tasks(tmp_path)
        assert run_eval("--base-url", server.url, "--tasks", tasks, "--output", tmp_path) == 2
    assert "answers 401: no key" in capsys.readouterr().err
