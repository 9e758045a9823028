"""A Ray cluster of two machines that are one: what a test needs of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

cluster_utils = pytest.importorskip(
    "ray.cluster_utils", reason="Ray is not installed: pip install -e '.[ray]', or make test-all"
)


class TwoMachines:
    """Machine a, where tests and servers run, and b, which may die and be replaced. Each has room
    for `num_ranks`; the GPUs exist for Ray only.
    """

    def __init__(self, num_ranks: int) -> None:
        self._machine = {
            "num_cpus": num_ranks,
            "num_gpus": num_ranks,
            "object_store_memory": 80 * 2**20,
        }
        head = {**self._machine, "include_dashboard": False, "node_name": "a"}
        self._cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        self.b = self.add("b")

    def add(self, name: str) -> Any:
        return self._cluster.add_node(node_name=name, **self._machine)

    def lose(self, machine: Any) -> None:
        self._cluster.remove_node(machine, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@contextmanager
def two_machines(num_ranks: int = 1) -> Iterator[TwoMachines]:
    """For servers started meanwhile: RAY_ADDRESS names the cluster."""
    machines = TwoMachines(num_ranks)
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = machines.address
    try:
        yield machines
    finally:
        os.environ.pop("RAY_ADDRESS")
        if before is not None:
            os.environ["RAY_ADDRESS"] = before
        machines.close()


def placed(module: str) -> list[psutil.Process]:
    """Processes that run glimt.<module> somewhere below an actor of this test's cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if f"glimt.{module}" in process.cmdline() and any(
                parent.name().startswith("ray::") for parent in process.parents()
            ):
                found.append(process)
        except psutil.Error:  # it has ended meanwhile
            continue
    return found


def actor_of(process: psutil.Process) -> psutil.Process:
    """The actor that it runs below."""
    return next(each for each in process.parents() if each.name().startswith("ray::"))
