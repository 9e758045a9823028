"""Plans that go to another rank as messages: no schedule changes a token.

The ranks are threads here, with real groups and real messages; `test_ranks.py` has processes.
"""

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore

from glimt.engine.plan import StepPlan
from glimt.errors import ReplicaLost
from glimt.models.glm4v import Glm4v
from glimt.parallel.group import gloo
from glimt.parallel.mesh import Mesh
from glimt.processes.machine import Machine
from glimt.processes.peer import launch
from glimt.processes.plan_message import PlanMessage, ToPeer, pack
from glimt.processes.profiling import Profiler
from glimt.processes.team import TeamMachine
from glimt.runner.tower_costs import TowerCosts
from tests.parallel.test_mesh import shard
from tests.runner.test_executor import ALBUM, Choice, alone, ask, choices
from tests.support.schedules import Schedule
from tests.support.tiny_model import CPU, make_executor, tiny_model

KINDS = ("glm4v", "glm4v_moe")


@cache
def meshes(experts: bool, splits_tower: bool) -> tuple[Mesh, ...]:
    """Of two ranks of one group, made once."""
    store = HashStore()

    def join(rank: int) -> Mesh:
        group = gloo(store, rank, 2)
        ep_size, ep_rank = (2, rank) if experts else (1, 0)
        return Mesh(
            2,
            rank,
            ep_size=ep_size,
            ep_rank=ep_rank,
            tp_group=group,
            host_group=group,
            splits_tower=splits_tower,
        )

    with ThreadPoolExecutor(2) as pool:
        return tuple(pool.map(join, range(2)))


def tower_shard(name: str, weight: torch.Tensor, whole: Glm4v, mesh: Mesh) -> torch.Tensor:
    """One rank's part of a parameter of the vision tower."""
    if ".qkv." in name:
        return torch.cat([part.chunk(2)[mesh.tp_rank] for part in weight.chunk(3)])
    if ".gate_up." in name:
        return torch.cat([part.chunk(2)[mesh.tp_rank] for part in weight.chunk(2)])
    if name.endswith(("attention.proj.weight", "down.weight")):
        return weight.chunk(2, -1)[mesh.tp_rank]
    return weight


@cache
def part_of(kind: str, rank: int, experts: bool, splits_tower: bool) -> Glm4v:
    """One rank's part of the model that `alone` runs."""
    whole, mesh = tiny_model(kind), meshes(experts, splits_tower)[rank]
    with torch.device("meta"):
        part = Glm4v(whole.config, mesh)
    state = {}
    for name, weight in whole.state_dict().items():
        split = tower_shard if name.startswith("vision.") and splits_tower else shard
        state[name] = split(name, weight, whole, mesh).contiguous()
    part.load_state_dict(state, assign=True)
    return part


# Of which the ranks make that large images are spread and small ones are dealt out.
COSTS = TowerCosts(alone=(0.0, 1.0), spread=(10.0, 0.5))


def machine_of(model: Glm4v) -> Machine:
    return Machine(
        model,
        make=lambda model: make_executor(model, ALBUM, tower_costs=COSTS),
        load=lambda: model,
        device=CPU,
        profiler=Profiler(None),
    )


class ThreadTeam:
    """One peer in a thread. Messages are encoded and decoded as on the wire."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._num_sent = 0
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def send(self, plan: StepPlan) -> None:
        self._num_sent += 1
        self._messages.put(msgspec.msgpack.encode(pack(self._num_sent, plan)))

    def close(self) -> None:
        self._messages.put(None)
        self._thread.join()

    def _follow(self) -> None:
        while (data := self._messages.get()) is not None:
            message = msgspec.msgpack.decode(data, type=ToPeer)
            assert isinstance(message, PlanMessage)
            launch(self._machine, message)


@pytest.mark.parametrize("kind", [pytest.param("glm4v", marks=pytest.mark.slow), "glm4v_moe"])
@settings(max_examples=8)
@given(
    chosen=choices,
    seed=st.integers(0, 2**16),
    depth=st.integers(1, 3),
    experts=st.booleans(),
    splits_tower=st.booleans(),
)
def test_no_schedule_over_two_ranks_changes_a_token(
    kind: str, chosen: list[Choice], seed: int, depth: int, experts: bool, splits_tower: bool
) -> None:
    expected = [alone(kind, choice) for choice in chosen]
    team: Any = ThreadTeam(machine_of(part_of(kind, 1, experts, splits_tower)))
    try:
        own = machine_of(part_of(kind, 0, experts, splits_tower))
        executor: Any = TeamMachine(own, team)
        asks = [ask(choice) for choice in chosen]
        assert Schedule(executor, asks, seed=seed, depth=depth).run() == expected
    finally:
        team.close()


def test_a_plan_that_fails_on_rank_0_gives_the_replica_up() -> None:
    class Nobody:
        def send(self, plan: StepPlan) -> None:
            pass

    team: Any = Nobody()
    impossible = StepPlan(1, encode=(None,))  # type: ignore[arg-type]
    with pytest.raises(ReplicaLost, match="rank 0"):
        TeamMachine(machine_of(tiny_model("glm4v")), team).launch(impossible)
