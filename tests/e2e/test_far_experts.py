"""Copies of several machines that share experts: they answer, and end and come back together."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from glimt.checkpoint import read_checkpoint
from glimt.experts.placement import Placement
from glimt.models.config_json import read_config
from tests.e2e.test_failures import LONG, SHORT, answers, post
from tests.e2e.test_far_failures import cable as cable
from tests.e2e.test_far_replicas import EXACT
from tests.e2e.test_replicas import QUESTIONS, text_of
from tests.e2e.test_shared_experts import idle_steps
from tests.support.nodes import TOKEN, HeadlessNode, break_off, free_port
from tests.support.serving import Serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NOTICE_S = 10.0  # a machine that hangs is noticed after six
ADDRESS = ["--data-parallel-address", "127.0.0.1"]


def flags_of(size: int, *more: str, address: list[str] = ADDRESS) -> list[str]:
    port = ["--data-parallel-rpc-port", str(free_port())]
    return [*EXACT, "-dp", str(size), "-dpl", "1", "-ep", *address, *port, *more]


class Pair:
    """A head and a node, with a copy each."""

    def __init__(self, checkpoint: Path, folder: Path, *more: str) -> None:
        self._flags = flags_of(2, *more)
        self._checkpoint, self._folder = checkpoint, folder
        self.node = self.start_node()
        head = [*self._flags, "--master-token", TOKEN]
        self.head = Serving(checkpoint, *head, log=folder / "head.txt")
        self.wait_for_all()

    def start_node(self, *more: str, name: str = "node.txt") -> HeadlessNode:
        flags = [*self._flags, "-dpr", "1", *more]
        return HeadlessNode(self._checkpoint, *flags, log=self._folder / name)

    def wait_for_all(self) -> None:
        """The head may answer before the far copy does."""
        self.head.wait_for(lambda: all(self.answers(copy) for copy in (0, 1)), 60)

    def answers(self, copy: int) -> bool:
        with contextlib.suppress(OSError):
            return bool(text_of(self.head, QUESTIONS[0], copy))
        return False

    def break_off(self, signum: int, *victims: psutil.Process) -> float:
        """`nodes.break_off`, of an answer of the head's own copy."""
        request = post(self.head, LONG)
        request.add_header("X-Data-Parallel-Rank", "0")
        return break_off(request, signum, *victims)


@pytest.fixture(scope="module")
def pair(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(checkpoint, tmp_path_factory.mktemp("pair"))
    yield pair
    pair.head.stop()
    pair.node.end()


def test_both_copies_give_the_answers_of_one_process(pair: Pair, serving: Serving) -> None:
    assert "experts shared with 1 more replicas" in pair.head.log.read_text()
    for question in QUESTIONS:
        expected = text_of(serving, question)
        assert [text_of(pair.head, question, copy) for copy in (0, 1)] == [expected] * 2
    pair.head.wait_for(lambda: idle_steps(pair.head) > 10)


def test_a_machine_that_differs_is_refused_by_name(pair: Pair) -> None:
    other = pair.start_node("--max-num-seqs", "3", name="other.txt")
    assert other.process.wait(60) == 2
    assert "node of replica 1 (" in other.log.read_text()  # there is one already
    assert answers(pair.head)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("module", ["engine", "muster", "machine"])
def test_all_copies_end_with_one_and_come_back_with_it(
    pair: Pair, module: str, signum: int
) -> None:
    victims = pair.node.all() if module == "machine" else [pair.node.child(module)]
    assert pair.break_off(signum, *victims) < NOTICE_S
    if module == "machine":
        pair.node.end()
        _, alive = psutil.wait_procs(victims, timeout=10)
        assert not alive
        assert not answers(pair.head)
        pair.node = pair.start_node()
    pair.wait_for_all()


def test_a_head_that_died_is_found_again_by_all(pair: Pair) -> None:
    engine = pair.node.child("engine")
    pair.head.process.kill()
    pair.head.stop()
    _, alive = psutil.wait_procs([engine], timeout=NOTICE_S)
    assert not alive  # it lacks the experts of the head's copy
    head = [*pair._flags, "--master-token", TOKEN]
    pair.head = Serving(pair._checkpoint, *head, log=pair._folder / "head-2.txt")
    pair.wait_for_all()


def test_the_node_ends_with_the_head_and_leaves_nothing(pair: Pair) -> None:
    processes = pair.node.all()
    assert pair.head.stop(60) == 0
    assert pair.node.process.wait(20) == 0
    _, alive = psutil.wait_procs(processes[1:], timeout=10)
    assert not alive
    assert "terminate called" not in pair.node.log.read_text()


def test_a_machine_with_other_experts_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    flags = flags_of(2)
    more = ["-dpr", "1", "--expert-placement-strategy", "round_robin"]
    other = HeadlessNode(checkpoint, *flags, *more, log=tmp_path / "other")
    log = tmp_path / "head"
    command = [*flags, "--master-token", TOKEN]
    with log.open("w") as output:
        words = [sys.executable, "-m", "glimt", "serve", str(checkpoint), "--port", "0"]
        head = subprocess.Popen([*words, *command], stderr=output)
    try:
        assert other.process.wait(60) == 2
        assert "differs from the head: --expert-placement: sha256" in other.log.read_text()
    finally:
        head.terminate()
        head.wait(20)


def test_two_ranks_each_and_rows_dealt_out(
    checkpoint: Path, serving: Serving, tmp_path: Path
) -> None:
    pair = Pair(checkpoint, tmp_path, "-tp", "2", "--all2all-backend", "alltoall")
    for question in QUESTIONS:
        expected = text_of(serving, question)
        assert [text_of(pair.head, question, copy) for copy in (0, 1)] == [expected] * 2
    assert pair.head.stop(60) == 0
    assert pair.node.process.wait(20) == 0


def placement_over_three(folder: Path) -> Placement:
    """Eight experts do not divide by three, so one is there twice."""
    checkpoint = read_checkpoint(folder)
    text = read_config(checkpoint.config, checkpoint.preprocessor_config).text
    layers = [layer for layer in range(text.num_layers) if text.is_moe_layer(layer)]
    ranks = ((0, 1, 2), (3, 4, 5), (6, 7, 0))
    return Placement(num_experts=8, layers=dict.fromkeys(layers, ranks))


def test_servers_behind_a_balancer_share_experts(
    checkpoint: Path, serving: Serving, tmp_path: Path
) -> None:
    """Two copies at the first, one at the second, each of which answers HTTP."""
    flags = [*EXACT, "-dp", "3", "-ep", "--master-token", TOKEN, *ADDRESS]
    flags += ["--data-parallel-rpc-port", str(free_port())]
    table = tmp_path / "placement.json"
    table.write_bytes(msgspec.json.encode(placement_over_three(checkpoint)))
    flags += ["--expert-placement", str(table)]
    places = [["-dpl", "2", "--data-parallel-hybrid-lb"], ["-dpl", "1", "-dpr", "2"]]
    servers: dict[int, Serving] = {}

    def start(number: int) -> None:
        log = tmp_path / f"{number}.txt"
        servers[number] = Serving(checkpoint, *flags, *places[number], log=log)

    threads = [threading.Thread(target=start, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for question in QUESTIONS[:3]:
        expected = text_of(serving, question)
        assert [text_of(servers[0], question, copy) for copy in (0, 1)] == [expected] * 2
        assert text_of(servers[1], question) == expected
    engine = servers[0].child("engine")
    servers[1].process.kill()
    _, alive = psutil.wait_procs([engine], timeout=NOTICE_S)
    assert not alive
    assert not answers(servers[0])
    servers[1].stop()
    start(1)
    servers[0].wait_for(lambda: answers(servers[0]), 60)
    for server in servers.values():
        assert server.stop(60) == 0


def test_a_cable_that_is_cut_and_mended(
    checkpoint: Path, tmp_path: Path, cable: tuple[list[str], list[str]]
) -> None:
    at_head, at_node = cable
    flags = flags_of(2, address=["--data-parallel-address", "10.77.0.1"])
    socket_file = tmp_path / "http"
    node = HeadlessNode(checkpoint, *flags, "-dpr", "1", log=tmp_path / "node", within=at_node)
    more = ["--master-token", TOKEN, "--uds", str(socket_file)]
    head = Serving(checkpoint, *flags, *more, log=tmp_path / "head", within=at_head)

    def ask(body: dict[str, object], copy: int) -> subprocess.Popen[str]:
        words = ["curl", "-sN", "--unix-socket", str(socket_file), "http://x/v1/chat/completions"]
        words += ["-H", "content-type: application/json", "-d", json.dumps(body)]
        words += ["-H", f"X-Data-Parallel-Rank: {copy}"]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def get(copy: int) -> Any:
        return json.loads(ask(SHORT, copy).communicate(timeout=60)[0])

    with head:
        head.wait_for(lambda: all("choices" in get(copy) for copy in (0, 1)), 60)
        stream = ask(LONG, 0)
        assert stream.stdout is not None
        stream.stdout.readline()
        started_s = time.monotonic()
        subprocess.run([*at_node, "ip", "link", "set", "glimt-vn", "down"], check=True)
        events = [line for line in stream.communicate(timeout=60)[0].splitlines() if line]
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "not_ready"
        assert time.monotonic() - started_s < NOTICE_S
        assert get(0)["error"]["code"] == "not_ready"
        subprocess.run([*at_node, "ip", "link", "set", "glimt-vn", "up"], check=True)
        head.wait_for(lambda: all("choices" in get(copy) for copy in (0, 1)), 60)
    assert node.process.wait(20) == 0
