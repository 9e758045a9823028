"""Ranks that Ray has placed on two machines: the tokens of one process, and what deaths do."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from glimt.config import ParallelSettings, Settings
from glimt.placement.placer import Placer
from tests.e2e.test_failures import LONG, answers, post
from tests.e2e.test_nodes import FLAGS, said
from tests.e2e.test_replicas import LONG_ENOUGH, QUESTIONS, text_of, tokens_of_engines
from tests.support.ray_cluster import TwoMachines, actor_of, placed, two_machines
from tests.support.serving import Serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BY_RAY = ["-tp", "2", "--nnodes", "2", "--distributed-executor-backend", "ray"]


@pytest.fixture(scope="module")
def machines() -> Iterator[TwoMachines]:
    with two_machines() as machines:
        yield machines


def leaves_nothing(serving: Serving) -> None:
    """Here, nor on the other machine."""
    ours = [*placed("processes.peer"), *placed("placement.worker"), *serving.children()]
    ours += [actor_of(worker) for worker in placed("placement.worker")]
    assert len(ours) > 5
    assert serving.stop(60) == 0
    _, alive = psutil.wait_procs(ours, timeout=20)
    assert not alive


@pytest.fixture(scope="module")
def spread(
    machines: TwoMachines, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with Serving(checkpoint, *BY_RAY, *FLAGS, log=log) as serving:
        yield serving


def refused(checkpoint: Path, *flags: str, address: str) -> str:
    """What `glimt serve` says when it does not start."""
    found = subprocess.run(
        [sys.executable, "-m", "glimt", "serve", str(checkpoint), "--port", "0", *FLAGS, *flags],
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert found.returncode == 2, found.stderr
    return found.stderr.splitlines()[-1]


def test_ranks_that_fit_no_machine_are_refused_with_what_there_is(
    machines: TwoMachines, checkpoint: Path
) -> None:
    flags = ["-tp", "2", "--distributed-executor-backend", "ray"]
    text = refused(checkpoint, *flags, address=machines.address)
    assert "--tensor-parallel-size 2 does not fit one machine of the Ray cluster" in text
    assert "this one, has 1" in text
    assert text.endswith("spread the ranks with --nnodes 2")


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:9", "no Ray head answers there"), ("ray://127.0.0.1:9", "on a machine of the")],
)
def test_a_cluster_that_is_not_there_is_refused_at_once(
    checkpoint: Path, address: str, said: str
) -> None:
    assert said in refused(checkpoint, *BY_RAY, address=address)


def test_ranks_here_compute_on_the_gpus_that_ray_has_given(
    machines: TwoMachines, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "not set")
    said: list[str] = []
    parallel = ParallelSettings(distributed_executor_backend="ray")
    with Placer(Settings(model=str(checkpoint), parallel=parallel), said.append) as placer:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
        assert placer.settings.cache.device == "cuda"
        assert placer.settings.parallel == ParallelSettings()
    assert "1 of 1 copies on this machine" in said[0]


def test_two_machines_give_the_tokens_of_one_process(
    spread: Serving, checkpoint: Path, tmp_path: Path
) -> None:
    with Serving(checkpoint, *FLAGS, log=tmp_path / "one.txt") as one:
        expected = said(one)
    assert said(spread) == expected
    assert len(placed("processes.peer")) == 1
    assert "[b (" in spread.log.read_text()


def test_ray_is_asked_nothing_while_answers_are_made(spread: Serving) -> None:
    """The process that speaks with Ray, and the actor, may stand still."""
    (worker,) = placed("placement.worker")
    idle = [actor_of(worker), spread.child_of("placement.driver")]
    for process in idle:
        process.suspend()
    try:
        assert answers(spread)
    finally:
        for process in idle:
            process.resume()


@pytest.mark.parametrize(
    ("victim", "named"),
    [
        ("rank", "peer-1 of this replica, on node 1 ("),
        ("worker", "ended: killed by SIGKILL; starting it again"),
        ("actor", "is lost: "),
        ("driver", "the process that speaks with Ray ended: killed by SIGKILL"),
    ],
)
def test_a_death_ends_requests_within_seconds_is_named_and_mended(
    spread: Serving, victim: str, named: str
) -> None:
    (rank,), (worker,) = placed("processes.peer"), placed("placement.worker")
    process = {
        "rank": lambda: rank,
        "worker": lambda: worker,
        "actor": lambda: actor_of(worker),
        "driver": lambda: spread.child_of("placement.driver"),
    }[victim]()
    before = len(spread.log.read_text())
    with urllib.request.urlopen(post(spread, LONG), timeout=60) as response:
        response.readline()
        process.send_signal(signal.SIGKILL)
        events = [line for line in response.read().decode().splitlines() if line]
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "not_ready"
    _, alive = psutil.wait_procs([rank], timeout=10)
    assert not alive
    spread.wait_for(lambda: answers(spread), 90)
    # What other machines say may come a moment later.
    spread.wait_for(lambda: named in spread.log.read_text()[before:], 10)
    assert "b (" in spread.log.read_text()[before:]


def test_a_machine_that_dies_is_replaced_by_another(spread: Serving, machines: TwoMachines) -> None:
    before = len(spread.log.read_text())
    machines.lose(machines.b)
    machines.add("c")
    spread.wait_for(lambda: answers(spread), 120)
    news = spread.log.read_text()[before:]
    assert "[b (" in news
    assert "is lost" in news
    assert "[c (" in news


def test_the_end_leaves_nothing(spread: Serving) -> None:
    leaves_nothing(spread)


@pytest.fixture(scope="module")
def copies(
    machines: TwoMachines, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    flags = ["-dp", "2", "--data-parallel-backend", "ray"]
    with Serving(checkpoint, *flags, *FLAGS, log=log) as serving:
        yield serving


def test_copies_on_two_machines_give_the_answers_of_one_process(
    copies: Serving, checkpoint: Path, tmp_path: Path
) -> None:
    with Serving(checkpoint, *FLAGS, log=tmp_path / "one.txt") as one:
        expected = [text_of(one, question) for question in QUESTIONS]
    with ThreadPoolExecutor(len(QUESTIONS)) as threads:
        found = list(threads.map(lambda question: text_of(copies, question), QUESTIONS))
    assert found == expected
    assert "1 of 2 copies on this machine" in copies.log.read_text()
    assert "is the place of copy 1" in copies.log.read_text()


def test_a_copy_that_dies_elsewhere_comes_back_while_the_one_here_goes_on(copies: Serving) -> None:
    (worker,) = placed("placement.worker")
    (far,) = placed("processes.engine")
    with (
        urllib.request.urlopen(post(copies, LONG_ENOUGH), timeout=60) as one,
        urllib.request.urlopen(post(copies, LONG_ENOUGH), timeout=60) as other,
    ):
        one.readline()
        other.readline()
        copies.wait_for(lambda: list(tokens_of_engines(copies).values()) == [1.0, 1.0])
        worker.kill()
        with ThreadPoolExecutor(2) as threads:
            ends = [
                text.decode() for text in threads.map(lambda stream: stream.read(), (one, other))
            ]
    assert sorted('"code":"not_ready"' in end.replace(" ", "") for end in ends) == [False, True]
    _, alive = psutil.wait_procs([far], timeout=10)
    assert not alive
    copies.wait_for(lambda: len(tokens_of_engines(copies)) == 2, 60)
    assert "ended: killed by SIGKILL; starting it again" in copies.log.read_text()


def test_the_end_of_copies_leaves_nothing(copies: Serving) -> None:
    leaves_nothing(copies)


def test_without_a_cluster_one_is_started_for_as_long_as_the_server_lasts(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    flags = ["-tp", "2", "--distributed-executor-backend", "ray"]
    with Serving(checkpoint, *flags, *FLAGS, log=tmp_path / "log.txt") as serving:
        assert "in a Ray cluster of this machine alone" in serving.log.read_text()
        assert answers(serving)
        ours = serving.children()
        assert any("gcs_server" in " ".join(process.cmdline()) for process in ours)
        serving.process.kill()
        _, alive = psutil.wait_procs(ours, timeout=30)
        assert not alive
