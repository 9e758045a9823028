"""Two server processes on one port: they answer alike, count together, and die apart."""

import contextlib
import http.client
import json
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.test_failures import LONG, answers, post, status_of
from tests.e2e.test_replicas import QUESTIONS, text_of
from tests.e2e.test_shared_images import series
from tests.support.serving import Serving

FLAGS = ["--api-server-count", "2", "--media-workers", "2", "--device", "cpu"]
FLAGS += ["--admin-key", "root"]


@pytest.fixture(scope="module")
def two(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with Serving(checkpoint, *FLAGS, "--dtype", "float32", log=log) as serving:
        yield serving


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """It takes no connection, so the other does."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def load(serving: Serving) -> int:
    with urllib.request.urlopen(f"{serving.url}/load", timeout=5) as response:
        return int(json.load(response)["server_load"])


def rest_of(stream: Any) -> bytes:
    """What still comes until the connection ends, in whatever way."""
    received = b""
    with stream, contextlib.suppress(OSError, http.client.HTTPException):
        while line := stream.readline():
            received += line
    return received


def open_stream(serving: Serving, max_tokens: int) -> Any:
    body = {**LONG, "max_tokens": max_tokens}
    response = urllib.request.urlopen(post(serving, body), timeout=60)
    response.readline()
    return response


def test_both_servers_give_the_answers_of_one_and_count_together(
    two: Serving, serving: Serving
) -> None:
    expected = [text_of(serving, question) for question in QUESTIONS]
    first, second = two.children_running("server")
    for other in (second, first):
        with stopped(other):
            assert [text_of(two, question) for question in QUESTIONS] == expected
    two.wait_for(lambda: series(two, "vllm:request_success_total") == 2 * len(QUESTIONS))
    for other in (second, first):
        with stopped(other):
            assert series(two, "vllm:request_success_total") == 2 * len(QUESTIONS)
            two.wait_for(lambda: series(two, "vllm:num_requests_running") == 0)
            assert load(two) == 0


def order(serving: Serving, path: str, method: str = "POST") -> Any:
    headers = {"Authorization": "Bearer root"}
    request = urllib.request.Request(serving.url + path, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def test_what_an_operator_asks_of_one_server_holds_for_both(two: Serving) -> None:
    first, second = two.children_running("server")
    with stopped(second):
        stream = open_stream(two, 3000)
    with stopped(first):
        order(two, "/pause")
        assert status_of(two) == 503
    assert b'"not_ready"' in rest_of(stream)
    with stopped(second):
        assert status_of(two) == 503, "paused by the other"
        assert order(two, "/is_paused", "GET") == {"is_paused": True}
        order(two, "/resume")
    with stopped(first):
        assert answers(two)
    two.wait_for(lambda: load(two) == 0)
    assert order(two, "/sleep?mode=wait") == {"is_sleeping": True, "level": 1}
    for other in (first, second):
        with stopped(other):
            two.wait_for(lambda: status_of(two) == 503)
    assert not order(two, "/wake_up")["is_sleeping"]
    for path in ("/reset_prefix_cache", "/reset_encoder_cache", "/reset_mm_cache"):
        assert order(two, path)["status"] == "reset"
    for other in (first, second):
        with stopped(other):
            two.wait_for(lambda: status_of(two) == 200)
            assert answers(two)


def test_a_killed_server_leaves_the_others_streams_alone_and_comes_back(two: Serving) -> None:
    first, second = two.children_running("server")
    with stopped(second):
        lost = open_stream(two, 3000)
    with stopped(first):
        kept = open_stream(two, 400)
    two.wait_for(lambda: load(two) == 2)
    before = series(two, "vllm:prompt_tokens_total")
    ends: list[str] = []
    reader = threading.Thread(target=lambda: ends.append(kept.read().decode()))
    reader.start()
    first.send_signal(signal.SIGKILL)
    assert b"[DONE]" not in rest_of(lost)
    assert status_of(two) == 200
    assert answers(two)
    reader.join(90)
    assert '"finish_reason":"length"' in ends[0].replace(" ", "")
    kept.close()
    two.wait_for(lambda: len(two.children_running("server")) == 2 and load(two) == 0, 60)
    two.wait_for(lambda: series(two, "vllm:num_requests_running") == 0, 60)
    assert second.is_running()
    successor = next(each for each in two.children_running("server") if each != second)
    two.wait_for(lambda: " is back" in two.log.read_text(), 60)
    with stopped(second):
        two.wait_for(lambda: answers(two), 60)
        assert series(two, "vllm:prompt_tokens_total") > before, "no counter falls"
    assert successor.is_running()


def test_the_death_of_the_supervisor_ends_everything(two: Serving) -> None:
    children = two.children()
    assert len(children) >= 5  # two servers, two media workers, an engine
    two.process.kill()
    two.process.wait(10)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_servers_that_share_their_images_drain_together_and_leave_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    flags = [*FLAGS, "--dtype", "float32", "--mm-processor-cache-type", "shm", "-dp", "2"]
    with Serving(checkpoint, *flags, log=tmp_path / "server.txt") as shared:
        children = shared.children()
        first, second = shared.children_running("server")
        with stopped(second):
            seen = text_of(shared, QUESTIONS[2])
            stream = open_stream(shared, 60)
        with stopped(first):
            assert text_of(shared, QUESTIONS[2]) == seen
            assert series(shared, "vllm:mm_cache_hits_total") == 1
            assert series(shared, "vllm:cache_config_info") == 2, "one row for each replica"
        status: list[int] = []
        stopper = threading.Thread(target=lambda: status.append(shared.stop(60)))
        stopper.start()
        assert '"finish_reason":"length"' in stream.read().decode().replace(" ", "")
        stream.close()
        stopper.join(60)
        assert status == [0]
        _, alive = psutil.wait_procs(children, 20)
        assert not alive
