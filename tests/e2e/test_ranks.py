"""Two ranks behind a real server: one of their processes dies or hangs, and the server does not."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from glimt.experts.load import read_load
from tests.e2e.test_failures import LONG, SHORT, answers, folders_of, post
from tests.support.serving import Serving


@pytest.fixture(scope="module")
def pair(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    flags = ["--tensor-parallel-size", "2", "--enable-expert-parallel", "--device", "cpu"]
    flags += ["--admin-key", "root", "--enable-sleep-mode", "--enable-expert-load-metrics"]
    flags += ["--expert-placement-strategy", "round_robin"]
    profiler = {"profiler": "torch", "torch_profiler_dir": str(log.parent / "profiles")}
    flags += ["--profiler-config", json.dumps(profiler)]
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


def metrics_of(serving: Serving) -> str:
    with urllib.request.urlopen(serving.url + "/metrics", timeout=60) as response:
        text: str = response.read().decode()
    return text


def order(serving: Serving, path: str) -> None:
    """What an operator wants of all ranks."""
    headers = {"Authorization": "Bearer root"}
    request = urllib.request.Request(serving.url + path, b"", headers, method="POST")
    with urllib.request.urlopen(request, timeout=60):
        pass


def test_all_ranks_sleep_and_wake_and_say_the_same(pair: Serving) -> None:
    with urllib.request.urlopen(post(pair, SHORT), timeout=60) as response:
        before = json.load(response)["choices"][0]["message"]
    for level in (1, 2):
        order(pair, f"/sleep?level={level}")
        order(pair, "/wake_up")
        with urllib.request.urlopen(post(pair, SHORT), timeout=60) as response:
            assert json.load(response)["choices"][0]["message"] == before


def test_what_experts_were_chosen_can_be_collected(pair: Serving) -> None:
    assert answers(pair)
    out = pair.log.parent / "load.json"
    command = [sys.executable, "-m", "glimt", "experts", "collect", str(out)]
    command += ["--base-url", pair.url + "/v1"]
    assert subprocess.run(command, check=False, env=os.environ).returncode == 2
    subprocess.run(command, check=True, env={**os.environ, "GLIMT_ADMIN_KEY": "root"})
    load = read_load(out)
    assert load.num_choices > 0
    assert load.model == "tiny"
    pair.wait_for(lambda: "glimt:expert_imbalance{" in metrics_of(pair))


@pytest.mark.slow
def test_each_rank_writes_a_profile_of_its_own(pair: Serving) -> None:
    order(pair, "/start_profile")
    assert answers(pair)
    order(pair, "/stop_profile")
    folder = pair.log.parent / "profiles"
    pair.wait_for(lambda: len(list(folder.glob("engine-rank-*.pt.trace.json*"))) == 2)
    assert answers(pair)


@pytest.mark.parametrize(
    ("module", "signum"),
    [
        ("peer", signal.SIGKILL),
        pytest.param("peer", signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param("engine", signal.SIGSTOP, marks=pytest.mark.slow),
    ],
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


@pytest.mark.slow
def test_a_stopped_peer_does_not_survive_its_engine(pair: Serving) -> None:
    """It reads nothing, so only the kernel can end it."""
    peer = pair.child("peer")
    peer.send_signal(signal.SIGSTOP)
    pair.child("engine").kill()
    _, alive = psutil.wait_procs([peer], timeout=10)
    assert not alive
    pair.wait_for(lambda: answers(pair), 60)


@pytest.mark.slow
def test_the_death_of_the_supervisor_ends_even_stopped_ranks(
    checkpoint: Path, tmp_path: Path
) -> None:
    flags = ["--tensor-parallel-size", "2", "--device", "cpu"]
    with Serving(checkpoint, *flags, log=tmp_path / "log.txt") as serving:
        children = serving.children()
        for rank in ranks_of(serving):
            rank.send_signal(signal.SIGSTOP)
        serving.process.kill()
        serving.process.wait(10)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


def test_sigterm_leaves_neither_ranks_nor_files(pair: Serving) -> None:
    children, folders = pair.children(), folders_of(pair)
    assert len(pair.children_running("peer")) == 1
    assert pair.stop(60) == 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert folders
    assert not any(folder.exists() for folder in folders)
