"""Copies of two machines each, that Ray has placed: the tokens of one process, and a machine that
dies; and copies that go elsewhere because others use this machine.
"""

import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from glimt.config import CacheSettings, ParallelSettings, Settings
from glimt.placement.placer import Placer
from tests.e2e.test_nodes import FLAGS
from tests.e2e.test_ranks import metrics_of
from tests.e2e.test_replicas import QUESTIONS, text_of
from tests.support.ray_cluster import TwoMachines, actor_of, placed, two_machines
from tests.support.serving import Serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

BY_RAY = ["-tp", "2", "--nnodes", "2", "-dp", "2", "--data-parallel-backend", "ray"]
# Takes all CPUs of the machine it runs on, says so, and waits for its end.
NEIGHBOUR = """
import os, sys, ray
from ray.util.placement_group import placement_group
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="error")
here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
group = placement_group([{"CPU": 2.0}], bundle_label_selector=[here])
ray.get(group.ready(), timeout=30) if group.wait(timeout_seconds=30) else sys.exit(1)
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def machines() -> Iterator[TwoMachines]:
    with two_machines(num_ranks=2) as machines:
        yield machines


def test_copies_go_elsewhere_where_others_use_this_machine(
    machines: TwoMachines, checkpoint: Path
) -> None:
    parallel = ParallelSettings(data_parallel_size=2, data_parallel_backend="ray")
    wished = Settings(model=str(checkpoint), parallel=parallel, cache=CacheSettings(device="cpu"))
    said: list[str] = []
    with Placer(wished, said.append):
        assert "2 of 2 copies on this machine" in said[0]
    command = [sys.executable, "-c", NEIGHBOUR]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as neighbour:
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline() == "taken\n"
        with Placer(wished, said.append) as placer:
            assert "0 of 2 copies on this machine" in said[1]
            assert placer.settings.parallel.data_parallel_size_local == 0
        neighbour.kill()


@pytest.fixture(scope="module")
def large(
    machines: TwoMachines, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with Serving(checkpoint, *BY_RAY, *FLAGS, log=log) as serving:
        yield serving


@pytest.fixture(scope="module")
def expected(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    log = tmp_path_factory.mktemp("log") / "one.txt"
    with Serving(checkpoint, *FLAGS, log=log) as one:
        return [text_of(one, question) for question in QUESTIONS]


def found(serving: Serving) -> list[list[str]]:
    """What each copy answers; empty while one of them does not."""
    try:
        return [[text_of(serving, question, copy) for question in QUESTIONS] for copy in range(2)]
    except urllib.error.HTTPError:
        return []


def test_copies_of_two_machines_each_give_the_answers_of_one_process(
    large: Serving, expected: list[str]
) -> None:
    assert found(large) == [expected] * 2
    text = large.log.read_text()
    assert "2 copies of 2 machines each" in text
    for part in ("ranks 1 to 1 of copy 0", "ranks 0 to 0 of copy 1", "ranks 1 to 1 of copy 1"):
        assert f"is the place of {part}" in text


def test_a_machine_that_dies_is_replaced_for_all_copies(
    large: Serving, machines: TwoMachines, expected: list[str]
) -> None:
    """Each has a part on it; where the ranks of the second met may be there as well."""
    before = len(large.log.read_text())
    machines.lose(machines.b)
    machines.add("c")
    large.wait_for(lambda: found(large) == [expected] * 2, 240)
    assert "[c (" in large.log.read_text()[before:]


def test_the_end_leaves_nothing(large: Serving) -> None:
    ours = [*placed("placement.worker"), *large.children()]
    ours += [actor_of(worker) for worker in placed("placement.worker")]
    assert len(placed("placement.worker")) == 3
    assert large.stop(60) == 0
    _, alive = psutil.wait_procs(ours, timeout=20)
    assert not alive


@pytest.mark.parametrize("scope", ["machine", "all"])
def test_copies_share_experts_on_each_machine_or_all(
    machines: TwoMachines, checkpoint: Path, expected: list[str], tmp_path: Path, scope: str
) -> None:
    flags = ["-dp", "4", "-dpl", "2", "-ep", "--data-parallel-backend", "ray"]
    flags += ["--expert-parallel-scope", scope]
    with Serving(checkpoint, *flags, *FLAGS, log=tmp_path / "server.txt") as serving:
        found = [[text_of(serving, question, copy) for question in QUESTIONS] for copy in range(4)]
        assert found == [expected] * 4
        text = serving.log.read_text()
        assert "2 of 4 copies on this machine, 2 on each" in text
        assert "is the place of copies 2 to 3" in text
        # A replica that has nothing to do takes part for the one that has.
        for engine in range(4):
            idle = f'glimt:idle_steps_total{{engine="{engine}"'
            row = next(line for line in metrics_of(serving).splitlines() if line.startswith(idle))
            assert float(row.split()[-1]) > 0
