"""Two ranks behind a real server: one of their processes dies or hangs, and the server does not."""

import json
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_failures import LONG, answers, folders_of, post
from tests.support.serving import Serving


@pytest.fixture(scope="module")
def pair(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    flags = ["--tensor-parallel-size", "2", "--enable-expert-parallel", "--device", "cpu"]
    with Serving(checkpoint, *flags, log=log) as serving:
        yield serving


def end_of_stream_after(serving: Serving, victim: psutil.Process, signum: int) -> list[str]:
    """The events that a running stream still gets when `victim` is sent a signal."""
    with urllib.request.urlopen(post(serving, LONG), timeout=60) as response:
        response.readline()
        victim.send_signal(signum)
        return [line for line in response.read().decode().splitlines() if line]


def ranks_of(serving: Serving) -> list[psutil.Process]:
    return [serving.child("engine"), serving.child("peer")]


@pytest.mark.parametrize(
    ("module", "signum"),
    [("peer", signal.SIGKILL), ("peer", signal.SIGSTOP), ("engine", signal.SIGSTOP)],
    ids=["a peer is killed", "a peer is stopped", "the engine is stopped"],
)
def test_the_replica_ends_its_requests_and_comes_back_with_all_its_ranks(
    pair: Serving, module: str, signum: int
) -> None:
    before = ranks_of(pair)
    events = end_of_stream_after(pair, pair.child(module), signum)
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "not_ready"
    assert not any('"finish_reason":"' in event for event in events)
    pair.wait_for(lambda: answers(pair), 60)
    _, alive = psutil.wait_procs(before, timeout=10)
    assert not alive
    assert not {process.pid for process in ranks_of(pair)} & {process.pid for process in before}


def test_a_stopped_peer_does_not_survive_its_engine(pair: Serving) -> None:
    """It reads nothing, so only the kernel can end it."""
    peer = pair.child("peer")
    peer.send_signal(signal.SIGSTOP)
    pair.child("engine").kill()
    _, alive = psutil.wait_procs([peer], timeout=10)
    assert not alive
    pair.wait_for(lambda: answers(pair), 60)


def test_sigterm_leaves_neither_ranks_nor_files(pair: Serving) -> None:
    children, folders = pair.children(), folders_of(pair)
    assert len([child for child in children if "peer" in " ".join(child.cmdline())]) == 1
    assert pair.stop(60) == 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert folders
    assert not any(folder.exists() for folder in folders)
