"""What happens on the way to a machine with further replicas: who dies there, hangs or leaves."""

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.test_failures import LONG, SHORT, answers, post, status_of
from tests.e2e.test_far_replicas import EXACT, Pair
from tests.e2e.test_far_replicas import pair as pair
from tests.e2e.test_replicas import QUESTIONS, text_of
from tests.support.nodes import TOKEN, HeadlessNode, free_port
from tests.support.serving import Serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize(
    ("where", "module"), [("node", "engine"), ("node", "uplink"), ("head", "gate")]
)
def test_each_process_on_the_way_is_replaced(
    pair: Pair, where: str, module: str, signum: int
) -> None:
    victim = pair.node.child(module) if where == "node" else pair.head.child(module)
    pair.break_off(signum, victim)
    pair.head.wait_for(lambda: answers(pair.head), 60)
    _, alive = psutil.wait_procs([victim], timeout=10)
    assert not alive
    assert pair.node.process.poll() is None


def test_a_dead_server_is_replaced_and_far_weights_stay_loaded(pair: Pair) -> None:
    engine = pair.node.child("engine")
    with urllib.request.urlopen(post(pair.head, LONG), timeout=60) as response:
        response.readline()
        pair.head.child("server").kill()
        lines: list[bytes] = []
        with contextlib.suppress(OSError, http.client.HTTPException):
            lines += response
    assert not any(b"[DONE]" in line for line in lines)
    pair.head.wait_for(lambda: answers(pair.head), 60)
    pair.head.wait_for(lambda: running(pair.head) == 0, 30)
    assert engine.is_running()


def running(serving: Serving) -> float:
    with urllib.request.urlopen(serving.url + "/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    rows = [line for line in lines if line.startswith("vllm:num_requests_running{")]
    return sum(float(row.split()[-1]) for row in rows)


def test_a_head_that_died_is_found_again_with_weights_loaded(pair: Pair) -> None:
    engine = pair.node.child("engine")
    pair.head.process.kill()
    pair.head.stop()
    pair.head = pair.start_head()
    assert answers(pair.head)
    assert pair.node.child("engine") == engine


def test_a_node_that_is_told_to_end_finishes_first(pair: Pair) -> None:
    long = {**LONG, "max_tokens": 400}
    with urllib.request.urlopen(post(pair.head, long), timeout=60) as response:
        response.readline()
        pair.node.process.send_signal(signal.SIGTERM)
        pair.head.wait_for(lambda: status_of(pair.head, "/readyz") == 503, 20)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(post(pair.head, SHORT), timeout=10)
        assert refused.value.code == 503
        refused.value.close()
        events = [line for line in response.read().decode().splitlines() if line]
    assert events[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in "".join(events[-3:]).replace(" ", "")
    assert pair.node.process.wait(20) == 0
    pair.node = pair.start_node()
    pair.head.wait_for(lambda: answers(pair.head), 60)


def test_a_head_serves_with_what_it_has_while_others_are_missing(
    checkpoint: Path, tmp_path: Path
) -> None:
    log = tmp_path / "head"
    flags = [*EXACT, "--data-parallel-address", "127.0.0.1", "--master-token", TOKEN]
    flags += ["--data-parallel-rpc-port", str(free_port()), "-dp", "3", "-dpl", "1"]
    file = str(tmp_path / "http")
    command = [sys.executable, "-m", "glimt", "serve", str(checkpoint), *flags, "--uds", file]
    with log.open("w") as output:
        head = subprocess.Popen(command, stderr=output)
    deadline_s = time.monotonic() + 60
    while "  waiting for replicas 1, 2\n" not in log.read_text():
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.1)
    words = ["curl", "-sN", "--unix-socket", file, "http://x/v1/chat/completions"]
    body = json.dumps({**LONG, "model": str(checkpoint), "max_tokens": 100})
    words += ["-H", "content-type: application/json", "-d", body]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline().startswith("data: {")
        head.send_signal(signal.SIGTERM)
        assert "data: [DONE]" in asking.stdout.read()
    assert head.wait(30) == 0


def test_orders_of_operators_reach_far_replicas(checkpoint: Path, tmp_path: Path) -> None:
    flags = [*EXACT, "--data-parallel-address", "127.0.0.1"]
    flags += ["--data-parallel-rpc-port", str(free_port()), "-dp", "1", "--enable-sleep-mode"]
    node = HeadlessNode(checkpoint, *flags, log=tmp_path / "node")
    more = ["-dpl", "0", "--master-token", TOKEN, "--admin-key", "root"]
    with Serving(checkpoint, *flags, *more, log=tmp_path / "head") as head:

        def order(path: str) -> int:
            request = urllib.request.Request(head.url + path, b"", {"Authorization": "Bearer root"})
            with urllib.request.urlopen(request, timeout=30) as response:
                return int(response.status)

        assert answers(head)
        assert order("/sleep?level=1") == 200
        assert not answers(head)
        assert order("/wake_up") == 200
        assert answers(head)
        assert order("/reset_prefix_cache") == 200
        assert answers(head)
    assert node.process.wait(20) == 0


def test_three_machines_of_two_ranks_each_and_two_servers(
    checkpoint: Path, serving: Serving, tmp_path: Path
) -> None:
    flags = [*EXACT, "-dp", "3", "-tp", "2", "--mm-processor-cache-type", "shm"]
    flags += ["--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", str(free_port())]
    nodes = [
        HeadlessNode(checkpoint, *flags, "-dpl", "1", "-dpr", str(rank), log=tmp_path / f"{rank}")
        for rank in (1, 2)
    ]
    head = ["--api-server-count", "2", "--media-workers", "2", "-dpl", "1", "--master-token", TOKEN]
    with Serving(checkpoint, *flags, *head, log=tmp_path / "head") as three:
        for question in QUESTIONS:
            expected = text_of(serving, question)
            assert [text_of(three, question, copy) for copy in range(3)] == [expected] * 3
    assert [node.process.wait(20) for node in nodes] == [0, 0]


def test_two_copies_of_two_machines_each(
    checkpoint: Path, serving: Serving, tmp_path: Path
) -> None:
    flags = [*EXACT, "-dp", "2", "-dpl", "1", "-tp", "2", "--nnodes", "2"]
    flags += ["--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", str(free_port())]
    places = [["--master-addr", "127.0.0.1", "--master-port", str(free_port())] for _ in range(2)]
    nodes = [
        HeadlessNode(
            checkpoint,
            *[*flags, *places[copy], "-dpr", str(copy), "--node-rank", str(rank)],
            log=tmp_path / f"{copy}-{rank}",
        )
        for copy, rank in ((0, 1), (1, 0), (1, 1))
    ]
    head = [*flags, *places[0], "--master-token", TOKEN]
    with Serving(checkpoint, *head, log=tmp_path / "head") as both:
        for question in QUESTIONS:
            expected = text_of(serving, question)
            assert [text_of(both, question, copy) for copy in range(2)] == [expected] * 2
    assert [node.process.wait(30) for node in nodes] == [0, 0, 0]


@pytest.fixture
def cable() -> Iterator[tuple[list[str], list[str]]]:
    """Two network namespaces with a cable between them: commands that run something in each."""
    if shutil.which("ip") is None or subprocess.run(["ip", "netns", "add", "glimt-h"]).returncode:
        pytest.skip("network namespaces cannot be made here")
    try:
        for line in (
            "netns add glimt-n",
            "link add glimt-vh type veth peer name glimt-vn",
            "link set glimt-vh netns glimt-h",
            "link set glimt-vn netns glimt-n",
            "-n glimt-h addr add 10.77.0.1/24 dev glimt-vh",
            "-n glimt-n addr add 10.77.0.2/24 dev glimt-vn",
            "-n glimt-h link set lo up",
            "-n glimt-h link set glimt-vh up",
            "-n glimt-n link set glimt-vn up",
        ):
            subprocess.run(["ip", *line.split()], check=True)
        yield ["ip", "netns", "exec", "glimt-h"], ["ip", "netns", "exec", "glimt-n"]
    finally:
        for name in ("glimt-h", "glimt-n"):
            subprocess.run(["ip", "netns", "del", name], check=False)


def test_a_cable_that_is_cut_and_mended(
    checkpoint: Path, tmp_path: Path, cable: tuple[list[str], list[str]]
) -> None:
    at_head, at_node = cable
    flags = [*EXACT, "--data-parallel-address", "10.77.0.1", "-dp", "1"]
    socket_file = tmp_path / "http"
    node = HeadlessNode(checkpoint, *flags, log=tmp_path / "node", within=at_node)
    head = Serving(
        checkpoint,
        *[*flags, "-dpl", "0", "--master-token", TOKEN, "--uds", str(socket_file)],
        log=tmp_path / "head",
        within=at_head,
    )

    def ask(body: dict[str, object]) -> subprocess.Popen[str]:
        words = ["curl", "-sN", "--unix-socket", str(socket_file), "http://x/v1/chat/completions"]
        words += ["-H", "content-type: application/json", "-d", json.dumps(body)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def get(body: dict[str, object]) -> Any:
        return json.loads(ask(body).communicate(timeout=60)[0])

    with head:
        assert get(SHORT)["choices"][0]["finish_reason"]
        stream = ask(LONG)
        assert stream.stdout is not None
        stream.stdout.readline()
        subprocess.run([*at_node, "ip", "link", "set", "glimt-vn", "down"], check=True)
        events = [line for line in stream.communicate(timeout=60)[0].splitlines() if line]
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "not_ready"
        assert get(SHORT)["error"]["code"] == "not_ready"
        subprocess.run([*at_node, "ip", "link", "set", "glimt-vn", "up"], check=True)
        head.wait_for(lambda: "choices" in get(SHORT), 60)
    assert node.process.wait(20) == 0
