"""Micro-batches: within their budget, each sample once, the same wherever they are made."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.training.toy import ToySource, make_source
from training.batches import Arrival, Feed, open_feed
from training.packing import Budget, Packer
from training.replay import Replay
from training.sample import Picture, Sample, Span
from training.worker import HELD_OUT_SEEDS

SOURCE = "tests.training.toy:make_source"
BUDGET = Budget(300, 200)


class Noted:
    """A source that remembers what it was asked for."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.sizes = sizes
        self.seeds: list[int] = []

    def sample(self, rng_seed: int, progress: float, held_out: bool) -> Sample:
        """A sample of the wanted number of tokens and merge blocks, marked with its seed."""
        self.seeds.append(rng_seed)
        tokens, blocks = self.sizes[rng_seed % len(self.sizes)]
        ids = np.full(tokens + blocks, rng_seed, np.int32)
        patches = np.zeros((4 * blocks, 3, 1, 14, 14), np.uint8)
        pictures = (Picture(1, 2, 2 * blocks, patches),) if blocks else ()
        return Sample(ids, pictures, (Span(tokens + blocks - 1, tokens + blocks, "all"),))


@settings(max_examples=40)
@given(
    sizes=st.lists(st.tuples(st.integers(2, 60), st.integers(0, 12)), min_size=1, max_size=7),
    restart=st.integers(0, 5),
)
def test_packing_keeps_the_budget_and_loses_no_sample(
    sizes: list[tuple[int, int]], restart: int
) -> None:
    budget, source = Budget(100, 64), Noted(sizes)
    packer, seen = Packer(source, 0, budget, held_out=False), []
    for turn in range(6):
        if turn == restart:  # a run that is resumed
            packer = Packer(source, packer.next_seed, budget, held_out=False)
        packed = packer.next(0.0)
        counts = packed.counts
        assert counts.tokens <= budget.tokens
        assert counts.patches <= budget.patches
        assert len(packed.words) <= budget.max_words
        assert len(packed.pixels) <= budget.max_pixels
        starts = np.split(packed.words, np.cumsum(counts.word_sizes))[2]
        seen += packed.words[starts[:-1]].tolist()
    assert seen == list(range(len(seen)))


def test_a_sample_that_can_never_fit_is_refused_with_its_seed() -> None:
    with pytest.raises(ValueError, match=r"sample 3 has 120 tokens .* --tokens"):
        Packer(Noted([(120, 0)]), 3, Budget(100, 64), held_out=False).next(0.0)


def test_a_sample_without_anything_to_learn_is_refused() -> None:
    class Empty:
        def sample(self, rng_seed: int, progress: float, held_out: bool) -> Sample:
            return Sample(np.zeros(4, np.int32), (), ())

    with pytest.raises(ValueError, match="spans"):
        Packer(Empty(), 0, BUDGET, held_out=False).next(0.0)


# ------------------------------------------------------------------------------------------ feeds


def held_out(feed: Feed, count: int) -> set[tuple[int, ...]]:
    """The token ids of `count` held-out samples, each batch as one tuple per sample."""
    samples: set[tuple[int, ...]] = set()
    missing = count
    while missing:
        arrival = feed.take(0.0, block=True)
        if arrival is not None and arrival.held_out:
            missing -= arrival.packed.counts.samples
            samples |= set(split(arrival))
    return samples


def split(arrival: Arrival) -> Iterator[tuple[int, ...]]:
    packed = arrival.packed
    ids, _, starts, *_ = np.split(packed.words, np.cumsum(packed.counts.word_sizes))
    pixels = packed.pixels.astype(np.int64)
    for start, end in pairwise(starts.tolist()):
        yield (*ids[start:end].tolist(), int(pixels.sum()))


@pytest.fixture(scope="module")
def workers() -> Iterator[Feed]:
    feed = open_feed(SOURCE, BUDGET, 2, 24, {})
    yield feed
    feed.close()


def test_workers_make_the_held_out_set_that_one_process_makes(workers: Feed) -> None:
    own = open_feed(SOURCE, BUDGET, 0, 24, {})
    assert held_out(workers, 24) == held_out(own, 24)


@pytest.mark.slow
def test_workers_stand_where_their_packers_stand(workers: Feed) -> None:
    before = workers.seeds
    arrival = None
    while arrival is None or arrival.held_out:
        arrival = workers.take(0.0, block=True)
    after = workers.seeds
    moved = [number for number in after if after[number] != before[number]]
    assert len(moved) == 1
    seed = before[moved[0]]
    again = Packer(make_source(), seed, BUDGET, held_out=False).next(0.0)
    assert np.array_equal(again.words, arrival.packed.words)
    assert np.array_equal(again.pixels, arrival.packed.pixels)
    assert after[moved[0]] - seed == arrival.packed.counts.samples
    assert max(after.values()) < HELD_OUT_SEEDS


@pytest.mark.slow
def test_a_source_that_raises_ends_the_run_with_its_traceback() -> None:
    feed = open_feed("tests.training.test_batches:failing", BUDGET, 1, 0, {})
    try:
        with pytest.raises(RuntimeError, match="the scene has no colour"):
            feed.take(0.0, block=True)
    finally:
        feed.close()


class Failing(ToySource):
    def sample(self, rng_seed: int, progress: float, held_out: bool) -> Sample:
        raise KeyError("the scene has no colour")


def failing() -> Failing:
    return Failing()


# ----------------------------------------------------------------------------------------- replay


class Block:
    """So many bytes."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.uses = 0


class ReplayMachine(RuleBasedStateMachine):
    """Any order of arrivals and draws."""

    MAX_BYTES, MAX_REUSE = 40, 3

    def __init__(self) -> None:
        super().__init__()
        self.replay = Replay[Block](self.MAX_BYTES, self.MAX_REUSE, seed=1)
        self.known: list[Block] = []

    @rule(nbytes=st.integers(1, 15))
    def add(self, nbytes: int) -> None:
        self.known.append(Block(nbytes))
        self.replay.add(self.known[-1])

    @precondition(lambda self: len(self.replay) > 0)
    @rule(share=st.floats(0.01, 1))
    def draw(self, share: float) -> None:
        count = max(1, int(share * len(self.replay)))
        fresh_before = self.replay.num_fresh
        drawn, num_fresh = self.replay.draw(count)
        assert len({id(block) for block in drawn}) == count  # never the same twice in a step
        assert num_fresh == min(count, fresh_before)
        assert [block.uses for block in drawn[:num_fresh]] == [0] * num_fresh
        for block in drawn:
            block.uses += 1
            assert block.uses <= self.MAX_REUSE

    @rule()
    def draw_too_many(self) -> None:
        with pytest.raises(ValueError, match="wanted"):
            self.replay.draw(len(self.replay) + 1)

    @invariant()
    def it_keeps_its_bounds(self) -> None:
        assert self.replay.nbytes <= self.MAX_BYTES
        spent = sum(block.uses >= self.MAX_REUSE for block in self.known)
        assert len(self.replay) <= len(self.known) - spent


TestReplay = ReplayMachine.TestCase
