"""Replicas that share experts answer as one that has them all, whoever has work and whenever.

Engines run in threads here, with real schedulers, models and groups; `tests/e2e` has processes.
"""

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.engine.limits import SchedulerLimits
from glimt.engine.lockstep import Wave
from glimt.engine.loop import EngineLoop
from glimt.engine.plan import Lockstep, RowWork, StepPlan, StepResult, TokenMasks
from glimt.engine.scheduler import Scheduler
from glimt.errors import EngineAsleep, ReplicaLost
from glimt.experts.group import Backend
from glimt.experts.load import ExpertLoad
from glimt.experts.packing import place_by_load
from glimt.experts.placement import Placement
from glimt.models.glm4v import Glm4v
from glimt.parallel.mesh import Mesh
from glimt.processes.machine import Machine
from glimt.processes.profiling import Profiler
from glimt.processes.team import TeamMachine
from glimt.wire import Abort, EngineMessage, EngineStats, Outputs, Wake
from tests.parallel.test_dispatch import meshes
from tests.parallel.test_mesh import shard
from tests.parallel.test_plans import ThreadTeam
from tests.runner.test_executor import ALBUM, FEATURES, LAYOUTS, Choice, alone, ask
from tests.runner.test_graphs import Recorder
from tests.support.tiny_model import CPU, make_executor, tiny_model

KIND = "glm4v_moe"
LIMITS = SchedulerLimits(  # few pages: requests preempt each other; few tokens: prompts are cut
    num_pages=18,
    page_size=4,
    max_num_seqs=4,
    max_num_batched_tokens=10,
    max_model_len=64,
    image_budget=16,
    image_cache_tokens=32,
    vocab_size=320,
)
MIXED = Placement(
    num_experts=8,
    layers={1: ((6, 1, 3, 0, 2), (7, 4, 2, 5, 6)), 2: ((5, 4, 3, 2, 1), (0, 1, 7, 6, 5))},
)


def part_of(mesh: Mesh) -> Glm4v:
    """One rank's part of the model that `alone` runs."""
    whole = tiny_model(KIND)
    with torch.device("meta"):
        part = Glm4v(whole.config, mesh)
    state = {n: shard(n, w, whole, mesh).contiguous() for n, w in whole.state_dict().items()}
    part.load_state_dict(state, assign=True)
    return part


def machine_of(mesh: Mesh, record: Recorder | None) -> Machine:
    sizes = {"max_num_seqs": LIMITS.max_num_seqs, "max_model_len": LIMITS.max_model_len}
    return Machine(
        part_of(mesh),
        make=lambda model: make_executor(
            model, ALBUM, num_pages=LIMITS.num_pages, record=record, **sizes
        ),
        load=lambda: part_of(mesh),
        device=CPU,
        profiler=Profiler(None),
    )


class Mail:
    """A mailbox that threads post to; collects the tokens of each answer."""

    def __init__(self) -> None:
        self.tokens: defaultdict[int, list[int]] = defaultdict(list)
        self.num_ended = 0
        self._messages: queue.SimpleQueue[EngineMessage] = queue.SimpleQueue()

    def post(self, message: EngineMessage) -> None:
        self._messages.put(message)

    def receive(self, timeout_s: float) -> list[EngineMessage]:
        messages: list[EngineMessage] = []
        try:
            messages.append(self._messages.get(block=timeout_s > 0, timeout=timeout_s or None))
            while True:
                messages.append(self._messages.get_nowait())
        except queue.Empty:
            return messages

    def send(self, server: int, outputs: Outputs) -> None:
        for output in outputs.outputs:
            assert output.error is None, output.error
            self.tokens[output.request_id] += output.token_ids
            self.num_ended += output.finish_reason is not None


class Replica:
    """One engine in a thread, and its peers in threads of their own."""

    def __init__(self, ranks: Sequence[Mesh], *, graphs: bool, overlap: bool) -> None:
        self.mail = Mail()
        self.others: list[Mail] = []
        self.wave = Wave(ranks[0].dp_tell, self._wake)
        recorders = [Recorder() if graphs else None for _ in ranks]
        executor: Any = machine_of(ranks[0], recorders[0])
        self.team: ThreadTeam | None = None
        if len(ranks) > 1:
            self.team = ThreadTeam(machine_of(ranks[1], recorders[1]))
            executor = TeamMachine(executor, self.team)  # type: ignore[arg-type]
        self.scheduler = Scheduler(LIMITS)
        self.loop = EngineLoop(
            self.scheduler,
            executor,
            self.mail,
            machine=executor,
            wave=self.wave,
            overlap=overlap,
        )
        self.thread = threading.Thread(target=self.loop.run)

    def _wake(self, number: int) -> None:
        for other in self.others:
            other.post(Wake(number))


@contextmanager
def replicas(meshes: Sequence[Mesh], **options: bool) -> Iterator[list[Replica]]:
    """One for each place of the dp axis, running."""
    by_place: defaultdict[int, list[Mesh]] = defaultdict(list)
    for mesh in meshes:
        by_place[mesh.dp_rank].append(mesh)
    made = [Replica(ranks, **options) for ranks in by_place.values()]
    for each in made:
        each.others = [other.mail for other in made if other is not each]
        each.thread.start()
    yield made
    wait_for(lambda: not any(each.wave.is_on for each in made), made)
    for each in made:
        each.loop.stop()
        each.mail.post(Abort(0, -1))
    for each in made:
        each.thread.join(30)
        if each.team is not None:
            each.team.close()


def wait_for(what: Callable[[], bool], running: Sequence[Replica]) -> None:
    deadline_s = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline_s
        assert all(each.thread.is_alive() for each in running), "a loop has ended"
        time.sleep(0.001)


def check(
    ranks: Sequence[Mesh], batches: Sequence[Sequence[Sequence[Choice]]], **options: bool
) -> list[EngineStats]:
    """Post batch after batch to the replicas, each when the one before is answered; what each
    replica has counted in the end."""
    with replicas(ranks, **options) as running:
        for batch in batches:
            ends = [each.mail.num_ended for each in running]
            firsts = [len(each.mail.tokens) for each in running]
            for replica, first, chosen in zip(running, firsts, batch, strict=True):
                for number, choice in enumerate(chosen, first):
                    replica.mail.post(ask(choice).submit(number))
            due = [end + len(chosen) for end, chosen in zip(ends, batch, strict=True)]
            wait_for(lambda due=due: [each.mail.num_ended for each in running] == due, running)
            for replica, first, chosen in zip(running, firsts, batch, strict=True):
                answers = [replica.mail.tokens[first + n] for n in range(len(chosen))]
                assert answers == [alone(KIND, choice) for choice in chosen]
        return [
            msgspec.structs.replace(each.scheduler.stats(), idle_steps=each.wave.num_idle_steps)
            for each in running
        ]


# The last features end answers early, which only a scheduler does.
choices = st.lists(
    st.tuples(st.sampled_from(LAYOUTS), st.integers(0, 3), st.integers(0, len(FEATURES) - 2)),
    min_size=1,
    max_size=3,
)


@st.composite
def courses(draw: st.DrawFn) -> dict[str, Any]:
    """Who asks what, and how it is computed; perhaps a replica has nothing to do."""
    batches = draw(st.lists(st.lists(choices, min_size=2, max_size=2), min_size=1, max_size=2))
    silent = draw(st.integers(0, 2))
    if silent < 2:
        batches[-1][silent] = []
    return {
        "batches": batches,
        "graphs": draw(st.booleans()),
        "overlap": draw(st.booleans()),
        "backend": draw(st.sampled_from(["auto", "alltoall"])),
    }


def check_course(tp: int, course: dict[str, Any]) -> None:
    backend: Backend = course.pop("backend")
    check([replace(mesh, exchange_backend=backend) for mesh in meshes(tp, 2)], **course)


@pytest.mark.parametrize("tp", [1, 2])
@settings(max_examples=2)
@given(course=courses())
def test_replicas_that_share_experts_give_the_tokens_of_one(
    tp: int, course: dict[str, Any]
) -> None:
    check_course(tp, course)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tp", [1, 2])
@settings(max_examples=60)
@given(course=courses())
def test_replicas_that_share_experts_give_the_tokens_of_one_in_many_courses(
    tp: int, course: dict[str, Any]
) -> None:
    check_course(tp, course)


def test_a_replica_without_work_takes_part_and_placed_experts_change_nothing() -> None:
    ranks = [replace(mesh, placement=MIXED) for mesh in meshes(1, 2)]
    work: list[Choice] = [("tbtt", 1, 0), ("tvt", 2, 0), ("tbtt", 1, 1), ("iti", 2, 0)]
    found = check(ranks, [[work, []], [[], work], [work, []]], graphs=True, overlap=True)
    assert all(each.idle_steps > 10 for each in found)
    assert sum(each.preemptions for each in found) > 0
    assert sum(each.prefix_hit_tokens for each in found) > 0


def test_three_replicas_share_experts_that_do_not_divide_but_for_a_copy() -> None:
    load = ExpertLoad(num_experts=8, layers=dict.fromkeys((1, 2), (9, 1, 2, 7, 3, 5, 4, 6)))
    placement = place_by_load(load, 3, num_redundant=1)
    ranks = [replace(mesh, placement=placement) for mesh in meshes(1, 3)]
    batch: list[list[Choice]] = [[("tit", 0, 0)], [], [("tt", 1, 1), ("b", 2, 0)]]
    check(ranks, [batch, batch[::-1]], graphs=False, overlap=False)


def tell_all(rounds: list[list[list[int]]]) -> Callable[[Sequence[int]], list[list[int]]]:
    """Answers of the others, round by round, behind one's own."""
    return lambda numbers: [[*numbers], *rounds.pop(0)]


def test_a_wave_lasts_while_anybody_has_work() -> None:
    woken: list[int] = []
    rounds = [[[5, 0, 1]], [[1, 1, 1]], [[0, 1, 1]], [[2, 1, 1]]]
    wave = Wave(tell_all(rounds), woken.append)
    assert wave.turn(None, is_awake=True) is None
    assert not wave.is_on
    plan = StepPlan(1, work=(RowWork(0, 3, 1, samples=True),))
    first = wave.turn(plan, is_awake=True)
    assert first == replace(plan, lockstep=Lockstep(5, all_decode=False))
    second = wave.turn(None, is_awake=True)
    assert second == StepPlan(0, lockstep=Lockstep(1, all_decode=True), is_idle=True)
    assert wave.is_on
    assert wave.turn(None, is_awake=True) is None
    assert not wave.is_on
    wave.woken(1)  # sent before the round that ended the wave
    assert wave.turn(None, is_awake=True) is None
    wave.woken(3)
    third = wave.turn(None, is_awake=True)
    assert third is not None
    assert third.is_idle
    assert woken == [0]
    assert wave.num_idle_steps == 2


def test_work_that_a_sleeping_replica_would_take_part_in_is_refused() -> None:
    wave = Wave(tell_all([[[0, 1, 0]]]), lambda number: None)
    with pytest.raises(EngineAsleep):
        wave.turn(StepPlan(1, work=(RowWork(0, 0, 1),)), is_awake=True)


def test_the_loss_of_another_replica_is_the_loss_of_this_one() -> None:
    def gone(numbers: Sequence[int]) -> list[list[int]]:
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(ReplicaLost):
        Wave(gone, lambda number: None).turn(StepPlan(1, work=(RowWork(0, 0, 1),)), is_awake=True)


def test_a_failed_step_gives_the_group_up_without_waiting_for_the_step_behind_it() -> None:
    """That one waits for the others, and they for the one that failed."""
    asked: list[int] = []

    class Step:
        def __init__(self, plan: StepPlan) -> None:
            self.plan = plan

        def draw(self, masks: TokenMasks) -> None: ...

        def result(self) -> StepResult:
            asked.append(self.plan.step)
            raise ValueError("the device is out of order")

    class Broken:
        def launch(self, plan: StepPlan) -> Step:
            return Step(plan)

    class Silent(Mail):
        def send(self, server: int, outputs: Outputs) -> None:
            self.num_ended += len(outputs.outputs)

    mail = Silent()
    wave = Wave(lambda numbers: [[*numbers], [1, 1, 1]], lambda number: None)
    loop = EngineLoop(Scheduler(LIMITS), Broken(), mail, wave=wave)
    mail.post(ask(("tt", 0, 0)).submit(0))
    with pytest.raises(ReplicaLost):
        loop.run()
    assert len(asked) == 1
    assert mail.num_ended == 1
