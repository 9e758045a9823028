"""EngineClient against a simulated engine: one end per Submit, one release per lease."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.errors import EngineDied, InvalidRequest, NumericalError, Overloaded, StepFailed
from glimt.frontend.client import EngineClient
from glimt.frontend.generation import Generation
from glimt.frontend.prompt import Prompt
from glimt.metrics import Metrics
from glimt.wire import Output, SamplingParams
from tests.support.fake_engine import INFO, FakeEngine, Running

GREEDY = SamplingParams(max_tokens=8, temperature=0.0)


@dataclass
class CountedLease:
    num_releases: int = 0

    def release(self) -> None:
        self.num_releases += 1


class Clock:
    """Time that moves only when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_client(num_engines: int = 1, **options: Any) -> tuple[EngineClient, list[FakeEngine]]:
    client = EngineClient(clock=Clock(), metrics=Metrics(model_name="m"), **options)
    engines = [FakeEngine(client, lambda submit: range(7, 7 + 100), i) for i in range(num_engines)]
    for engine in engines:
        engine.start()
    return client, engines


def make_prompt(length: int = 5) -> tuple[Prompt, CountedLease]:
    lease = CountedLease()
    return Prompt(np.arange(length, dtype=np.int32), leases=(lease,)), lease


async def read(generation: Generation) -> list[Output]:
    return [output async for output in generation]


async def test_a_generation_ends_with_its_finish_reason() -> None:
    client, engines = make_client()
    prompt, lease = make_prompt()
    async with Running(*engines):
        outputs = await read(client.generate(prompt, GREEDY))
    assert [token for output in outputs for token in output.token_ids] == list(range(7, 15))
    assert [output.finish_reason for output in outputs] == [None] * 7 + ["length"]
    assert lease.num_releases == 1
    assert client.num_open == 0


async def test_an_engine_that_leaves_finishes_what_it_has_and_gets_nothing_new() -> None:
    client, engines = make_client(2)
    client.spare_engine(7)  # there is none
    async with Running(*engines):
        running = [client.generate(make_prompt()[0], GREEDY) for _ in range(2)]
        client.spare_engine(0)
        assert client.num_engines == 1
        later = [client.generate(make_prompt()[0], GREEDY) for _ in range(3)]
        for generation in (*running, *later):
            assert (await read(generation))[-1].finish_reason == "length"
        assert [len(engine.submits) for engine in engines] == [1, 4]
        client.spare_engine(1)
        prompt, lease = make_prompt()
        with pytest.raises(EngineDied, match="finish what they have"):
            client.generate(prompt, GREEDY)
    assert lease.num_releases == 1


async def test_a_prompt_goes_to_the_copy_that_is_asked_for() -> None:
    client, engines = make_client(2, copies=range(3))
    async with Running(*engines):
        for _ in range(3):
            await read(client.generate(make_prompt()[0], GREEDY, copy=1))
        assert [len(engine.submits) for engine in engines] == [0, 3]
    for copy, error in ((2, EngineDied), (3, InvalidRequest)):
        prompt, lease = make_prompt()
        with pytest.raises(error, match=f"copy {copy}"):
            client.generate(prompt, GREEDY, copy=copy)
        assert lease.num_releases == 1


async def test_a_replica_that_is_missing_is_seen_in_the_metrics() -> None:
    metrics = Metrics(model_name="m")
    client = EngineClient(clock=Clock(), metrics=metrics, copies=(0, 1))

    def up() -> list[str]:
        lines = metrics.render().decode().splitlines()
        return [line[-3:] for line in lines if line.startswith("glimt:replica_up{")]

    assert up() == ["0.0", "0.0"]
    engine = FakeEngine(client, lambda submit: range(9), 1)
    engine.start()
    assert up() == ["0.0", "1.0"]
    client.remove_engine(1, "lost")
    assert up() == ["0.0", "0.0"]


async def test_the_submit_carries_the_prompt_as_the_wire_has_it() -> None:
    client, (engine,) = make_client()
    positions = np.arange(15, dtype=np.int32).reshape(5, 3).T  # not contiguous
    prompt = Prompt(np.array([1, 2, 300, 4, 5], np.int32), positions, rope_delta=-2)
    client.generate(prompt, GREEDY, priority=3, cache_salt=b"tenant").close()
    submit = engine.submits[0]
    assert np.frombuffer(submit.token_ids, np.int32).tolist() == [1, 2, 300, 4, 5]
    assert submit.positions is not None
    assert np.frombuffer(submit.positions, np.int32).reshape(3, 5).tolist() == positions.tolist()
    assert (submit.rope_delta, submit.priority, submit.cache_salt) == (-2, 3, b"tenant")
    assert submit.arrival_s == 100.0


async def test_a_reader_that_fell_behind_gets_everything_at_once() -> None:
    client, (engine,) = make_client()
    prompt, _ = make_prompt()
    generation = client.generate(prompt, GREEDY)
    for _ in range(3):
        engine.step()
    assert [output.token_ids for _, output in await generation.receive()] == [(7,), (8,), (9,)]
    generation.close()


async def test_a_reader_that_leaves_aborts_and_the_leases_wait_for_the_engine() -> None:
    client, (engine,) = make_client()
    prompt, lease = make_prompt()
    generation = client.generate(prompt, GREEDY)
    engine.step()
    generation.close()
    generation.close()
    assert engine.aborts == [engine.submits[0].request_id]
    assert lease.num_releases == 0, "the engine may still read the pixels"
    engine.step()
    assert lease.num_releases == 1
    assert client.num_open == 0


async def test_a_cancelled_reader_aborts_at_once() -> None:
    client, (engine,) = make_client()
    generation = client.generate(make_prompt()[0], GREEDY)
    reader = asyncio.create_task(read(generation))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert len(engine.aborts) == 1


async def test_a_generation_that_is_never_read_can_be_closed() -> None:
    client, (engine,) = make_client()
    prompt, lease = make_prompt()
    client.generate(prompt, GREEDY).close()
    engine.step()
    assert lease.num_releases == 1


async def test_a_dead_engine_ends_its_requests_and_frees_their_pixels() -> None:
    client, (engine,) = make_client()
    prompt, lease = make_prompt()
    generation = client.generate(prompt, GREEDY)
    engine.step()
    engine.die("the engine died; it is being restarted")
    assert lease.num_releases == 1
    assert [output.token_ids for _, output in await generation.receive()] == [(7,)]
    with pytest.raises(EngineDied, match="being restarted"):
        await generation.receive()
    with pytest.raises(EngineDied):
        client.generate(make_prompt()[0], GREEDY)


async def test_a_dead_engine_leaves_the_others_alone() -> None:
    client, engines = make_client(2)
    generations = [client.generate(make_prompt()[0], GREEDY) for _ in range(2)]
    assert [len(engine.submits) for engine in engines] == [1, 1]
    engines[0].die()
    async with Running(engines[1]):
        assert (await read(generations[1]))[-1].finish_reason == "length"
    with pytest.raises(EngineDied):
        await read(generations[0])


async def test_outputs_of_an_earlier_engine_are_ignored() -> None:
    client, (engine,) = make_client()
    client.generate(make_prompt()[0], GREEDY)
    engine.die()
    engine.start()
    generation = client.generate(make_prompt()[0], GREEDY)
    engine.deliver(Output(engine.submits[0].request_id, (1,), "stop"))
    assert client.num_open == 1
    generation.close()


@pytest.mark.parametrize(
    ("code", "kind"), [("step_failed", StepFailed), ("numerical_error", NumericalError)]
)
async def test_the_engines_error_is_raised_by_its_class(code: str, kind: type[Exception]) -> None:
    client, (engine,) = make_client()
    prompt, lease = make_prompt()
    generation = client.generate(prompt, GREEDY, n=2)
    engine.step()
    engine.fail(engine.submits[0].request_id, code, "no")
    with pytest.raises(kind, match="no"):
        await read(generation)
    assert engine.aborts == [engine.submits[1].request_id], "the other choice is of no use"
    assert lease.num_releases == 0
    engine.step()
    assert lease.num_releases == 1


async def test_an_abort_that_nobody_asked_for_is_an_error() -> None:
    client, (engine,) = make_client()
    generation = client.generate(make_prompt()[0], GREEDY)
    engine.deliver(Output(engine.submits[0].request_id, (), "abort"))
    with pytest.raises(EngineDied):
        await read(generation)


async def test_choices_have_their_own_seeds_and_one_engine() -> None:
    client, engines = make_client(2)
    sampling = SamplingParams(max_tokens=2, seed=2**63 - 1)
    generation = client.generate(make_prompt()[0], sampling, n=4)
    seeds = [submit.sampling.seed for submit in engines[0].submits]
    assert seeds[0] == 2**63 - 1
    assert len(set(seeds)) == 4
    assert not engines[1].submits
    generation.close()


async def test_one_choice_can_be_aborted_and_the_others_go_on() -> None:
    client, (engine,) = make_client()
    prompt, lease = make_prompt()
    generation = client.generate(prompt, GREEDY, n=2)
    generation.abort(0)
    async with Running(engine):
        outputs = await read(generation)
    assert {output.request_id for output in outputs} == {engine.submits[1].request_id}
    assert lease.num_releases == 1


async def test_excess_is_refused_with_a_time_to_come_back() -> None:
    client, (engine,) = make_client(max_waiting=2)
    generations = [client.generate(make_prompt()[0], GREEDY) for _ in range(INFO.max_num_seqs + 2)]
    prompt, lease = make_prompt()
    with pytest.raises(Overloaded) as refused:
        client.generate(prompt, GREEDY)
    assert 1 <= refused.value.retry_after_s <= 40
    assert lease.num_releases == 1
    assert len(engine.submits) == len(generations)
    generations[0].close()
    engine.step()
    client.generate(make_prompt()[0], GREEDY)


async def test_requests_in_preparation_hold_room() -> None:
    client, _ = make_client(max_waiting=1)
    with client.preparing(INFO.max_num_seqs + 1):
        with pytest.raises(Overloaded), client.preparing():
            pass
        assert client.num_preparing == INFO.max_num_seqs + 1
    with client.preparing():
        pass


async def test_waiting_prompts_are_bounded_by_the_kv_cache() -> None:
    client, (engine,) = make_client()
    limit = 4 * INFO.num_pages * INFO.page_size
    first = client.generate(make_prompt(limit)[0], GREEDY)
    with pytest.raises(Overloaded, match="tokens wait"):
        client.generate(make_prompt(1)[0], GREEDY)
    engine.step()  # the first has started: it does not wait any more
    client.generate(make_prompt(1)[0], GREEDY).close()
    first.close()


async def test_an_engine_that_takes_nothing_is_overloaded() -> None:
    client, (engine,) = make_client()
    engine.takes_messages = False
    prompt, lease = make_prompt()
    with pytest.raises(Overloaded):
        client.generate(prompt, GREEDY, n=3)
    assert lease.num_releases == 1
    assert client.num_open == 0


async def test_drain_waits_for_the_last_request() -> None:
    client, (engine,) = make_client()
    await client.drain()
    generation = client.generate(make_prompt()[0], GREEDY)
    drained = asyncio.create_task(client.drain())
    await asyncio.sleep(0)
    assert not drained.done()
    async with Running(engine):
        await read(generation)
        await drained


async def test_drain_waits_for_a_request_that_was_being_prepared() -> None:
    client, (engine,) = make_client()
    with client.preparing():
        drained = asyncio.create_task(client.drain())
        await asyncio.sleep(0)
    generation = client.generate(make_prompt()[0], GREEDY)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not drained.done()
    async with Running(engine):
        await read(generation)
        await drained


async def test_ending_all_gives_every_reader_an_error() -> None:
    client, (engine,) = make_client()
    generations = [client.generate(make_prompt()[0], GREEDY) for _ in range(3)]
    client.end_all("the server is shutting down")
    assert len(engine.aborts) == 3
    for generation in generations:
        with pytest.raises(EngineDied, match="shutting down"):
            await read(generation)


class World:
    """Two engines, and everything that may happen to them in any order."""

    def __init__(self) -> None:
        self.client, self.engines = make_client(2)
        self.generations: list[Generation] = []
        self.leases: list[CountedLease] = []

    def submit(self, number: int) -> None:
        prompt, lease = make_prompt()
        self.leases.append(lease)
        try:
            self.generations.append(self.client.generate(prompt, GREEDY, n=number % 3 + 1))
        except (EngineDied, Overloaded):
            assert lease.num_releases == 1

    def step(self, number: int) -> None:
        self.engines[number % 2].step()

    def die(self, number: int) -> None:
        self.engines[number % 2].die()

    def start(self, number: int) -> None:
        engine = self.engines[number % 2]
        engine.running.clear()
        engine.aborted.clear()
        engine.start()

    def fail(self, number: int) -> None:
        engine = self.engines[number % 2]
        for request_id in list(engine.running)[:1]:
            engine.fail(request_id, "step_failed", "no")

    def close(self, number: int) -> None:
        if self.generations:
            self.generations[number % len(self.generations)].close()

    def give_up_one_choice(self, number: int) -> None:
        if self.generations:
            self.generations[number % len(self.generations)].abort(0)

    async def end(self) -> None:
        for engine in self.engines:
            while engine.running or engine.aborted:
                engine.step()
        for generation in self.generations:
            with contextlib.suppress(EngineDied, StepFailed):
                await asyncio.wait_for(read(generation), 5)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["submit", "step", "close", "die", "start", "fail", "give_up_one_choice"]
            ),
            st.integers(0, 5),
        ),
        max_size=60,
    )
)
def test_whatever_happens_each_lease_is_released_once(events: list[tuple[str, int]]) -> None:
    async def happen() -> None:
        world = World()
        for kind, number in events:
            getattr(world, kind)(number)
            assert all(lease.num_releases <= 1 for lease in world.leases)
        await world.end()
        assert world.client.num_open == 0
        assert [lease.num_releases for lease in world.leases] == [1] * len(world.leases)

    asyncio.run(happen())
