"""Replicas on another machine, played by two servers that share nothing but the loopback."""

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from glimt import LLM, SamplingParams
from tests.e2e.test_failures import LONG, answers, post, status_of
from tests.e2e.test_replicas import FIXED, QUESTIONS, text_of
from tests.support.nodes import TOKEN, HeadlessNode, break_off, free_port
from tests.support.serving import Serving

EXACT = ["--device", "cpu", "--dtype", "float32", "--max-model-len", "4096"]


class Pair:
    """A head without replicas, so that all requests go over the wire, and a node with the one."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        address = ["--data-parallel-address", "127.0.0.1"]
        self._flags = [*EXACT, *address, "--data-parallel-rpc-port", str(free_port())]
        self._checkpoint, self._folder = checkpoint, folder
        self.node = self.start_node()
        self.head = self.start_head()

    def start_node(self) -> HeadlessNode:
        return HeadlessNode(self._checkpoint, *self._flags, log=self._folder / "node.txt")

    def start_head(self) -> Serving:
        flags = [*self._flags, "--data-parallel-size-local", "0", "--master-token", TOKEN]
        return Serving(self._checkpoint, *flags, log=self._folder / "head.txt")

    def break_off(self, signum: int, *victims: psutil.Process) -> None:
        """`nodes.break_off`, of an answer of the far copy."""
        break_off(post(self.head, LONG), signum, *victims)


@pytest.fixture(scope="module")
def pair(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(checkpoint, tmp_path_factory.mktemp("nodes"))
    yield pair
    pair.head.stop()
    pair.node.end()


def test_another_machine_gives_the_answers_of_one_process(pair: Pair, checkpoint: Path) -> None:
    params = SamplingParams(max_tokens=24, temperature=0.0, seed=1)
    with LLM(str(checkpoint), dtype="float32", device="cpu", max_model_len=4096) as here:
        for question in QUESTIONS:
            (expected,) = here.chat([{"role": "user", "content": question}], params)
            assert text_of(pair.head, question) == expected.outputs[0].text
    assert FIXED["max_tokens"] == params.max_tokens


def test_a_lost_connection_ends_requests_and_weights_stay_loaded(pair: Pair) -> None:
    engine = pair.node.child("engine")
    pair.break_off(signal.SIGKILL, pair.node.child("uplink"))
    pair.head.wait_for(lambda: answers(pair.head), 30)
    assert engine.is_running()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_machine_that_dies_or_hangs_is_noticed_and_may_come_back(pair: Pair, signum: int) -> None:
    processes = pair.node.all()
    pair.break_off(signum, *processes)
    assert status_of(pair.head) == 503
    pair.node.end()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
    pair.node = pair.start_node()
    pair.head.wait_for(lambda: answers(pair.head), 60)


def test_the_node_ends_with_the_head_and_leaves_nothing(pair: Pair) -> None:
    processes = pair.node.all()
    assert pair.head.stop(60) == 0
    assert pair.node.process.wait(20) == 0
    _, alive = psutil.wait_procs(processes[1:], timeout=10)
    assert not alive


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.slow),
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu2,
                pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
            ],
        ),
    ],
)
def test_a_near_and_a_far_copy_give_the_same_answers(
    checkpoint: Path, tmp_path: Path, device: str
) -> None:
    """On GPUs each has one of its own, as on two machines."""
    flags = ["--device", device, "--dtype", "float32", "-dp", "2", "-dpl", "1"]
    flags += ["--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", str(free_port())]
    far_gpu, near_gpu = (["env", f"CUDA_VISIBLE_DEVICES={gpu}"] for gpu in (1, 0))
    node = HeadlessNode(checkpoint, *flags, "-dpr", "1", log=tmp_path / "node", within=far_gpu)
    near = [*flags, "--master-token", TOKEN]
    with Serving(checkpoint, *near, log=tmp_path / "head", within=near_gpu) as head:
        for question in QUESTIONS:
            assert text_of(head, question, copy=0) == text_of(head, question, copy=1)
    assert node.process.wait(20) == 0
