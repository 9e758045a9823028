"""One replica over two machines, played by two servers that share nothing but the loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.e2e.test_failures import LONG, answers, post
from tests.parallel.test_ranks import picture
from tests.support.serving import Serving

TOKEN = "a token of sixteen or more"
FLAGS = ["--device", "cpu", "--dtype", "float32", "--max-model-len", "4096"]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def of_node(rank: int, port: int) -> list[str]:
    flags = ["--tensor-parallel-size", "2", "--nnodes", "2", "--node-rank", str(rank)]
    return [*flags, "--master-addr", "127.0.0.1", "--master-port", str(port), *FLAGS]


class Node1:
    """`glimt serve … --node-rank 1`: it has no port, so only its log says how it is."""

    def __init__(self, model: Path, port: int, log: Path, *more: str, token: str = TOKEN) -> None:
        self.log = log
        command = [sys.executable, "-m", "glimt", "serve", str(model), *of_node(1, port), *more]
        environment = {**os.environ, "GLIMT_MASTER_TOKEN": token}
        with log.open("a") as output:
            self.process = subprocess.Popen(command, stderr=output, env=environment)

    def ranks(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(10)


class Pair:
    """Both machines."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self.port, self.checkpoint, self.folder = free_port(), checkpoint, folder
        other = make_tiny_checkpoint(folder / "other", seed=1)
        self.wrong = [
            Node1(other, self.port, folder / "other.txt"),
            Node1(checkpoint, self.port, folder / "flag.txt", "--max-num-seqs", "3"),
            Node1(checkpoint, self.port, folder / "token.txt", token=TOKEN[::-1]),
        ]
        right = threading.Thread(target=self._follow)
        right.start()
        flags = [*of_node(0, self.port), "--master-token", TOKEN, "--api-server-count", "2"]
        flags += ["--media-workers", "2"]
        self.serving = Serving(checkpoint, *flags, log=folder / "node-0.txt")
        right.join()

    def _follow(self) -> None:
        """Node 0 listens until the right one comes."""
        for node in self.wrong:
            node.process.wait(60)
        self.node1 = self.start_node1()

    def start_node1(self) -> Node1:
        return Node1(self.checkpoint, self.port, self.folder / "node-1.txt")


@pytest.fixture(scope="module")
def pair(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(checkpoint, tmp_path_factory.mktemp("nodes"))
    with pair.serving:
        yield pair
    pair.node1.end()


def test_machines_that_differ_are_refused_by_name(pair: Pair) -> None:
    assert [node.process.returncode for node in pair.wrong] == [2, 2, 2]
    other, flag, token = (node.log.read_text() for node in pair.wrong)
    seen_by_node_0 = pair.serving.log.read_text()
    name = f"node 1 ({socket.gethostname()}) differs from node 0: "
    assert f"{name}the checkpoint's " in other
    assert f"{name}--max-num-seqs: 3 there, None on node 0" in flag
    assert f"{name}--max-num-seqs: 3 there, None on node 0" in seen_by_node_0
    assert "--master-token is not the one of node 0" in token
    assert TOKEN not in seen_by_node_0


def said(serving: Serving) -> list[Any]:
    """The tokens of answers to text and to images."""
    found: list[Any] = []
    for content in ("Hi.", [picture(0), {"type": "text", "text": "What?"}], [picture(1)], "Hi."):
        body: dict[str, object] = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 24,
            "temperature": 0,
            "logprobs": True,
        }
        with urllib.request.urlopen(post(serving, body), timeout=60) as response:
            choice = json.load(response)["choices"][0]
        found.append([token["bytes"] for token in choice["logprobs"]["content"]])
    return found


def test_two_machines_give_the_tokens_of_one_process(pair: Pair, serving: Serving) -> None:
    assert said(pair.serving) == said(serving)
    assert len(pair.node1.ranks()) == 1


@pytest.mark.parametrize(
    ("whom", "signum"),
    [
        pytest.param("node 1", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("node 1", signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param("its rank", signal.SIGKILL, marks=pytest.mark.slow),
    ],
    ids=["it is killed", "it is stopped", "its rank is killed"],
)
def test_the_loss_of_a_machine_ends_requests_and_is_mended_when_it_is_back(
    pair: Pair, whom: str, signum: int
) -> None:
    ranks = [*pair.node1.ranks(), pair.serving.child("engine")]
    with urllib.request.urlopen(post(pair.serving, LONG), timeout=60) as response:
        response.readline()
        victim = psutil.Process(pair.node1.process.pid) if whom == "node 1" else ranks[0]
        victim.send_signal(signum)
        events = [line for line in response.read().decode().splitlines() if line]
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "not_ready"
    if whom == "node 1":
        pair.node1.end()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive
    if whom == "node 1":
        pair.node1 = pair.start_node1()
    pair.serving.wait_for(lambda: answers(pair.serving), 60)
    assert "node 1 (" in pair.serving.log.read_text()


@pytest.mark.slow
def test_the_loss_of_the_engine_is_survived_by_the_other_machine(pair: Pair) -> None:
    before = pair.node1.ranks()
    pair.serving.child("engine").kill()
    pair.serving.wait_for(lambda: answers(pair.serving), 60)
    assert pair.node1.process.poll() is None
    assert pair.node1.ranks() != before


def test_node_1_ends_with_node_0_and_leaves_nothing(pair: Pair) -> None:
    ranks = pair.node1.ranks()
    assert pair.serving.stop(60) == 0
    assert pair.node1.process.wait(20) == 0
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive
