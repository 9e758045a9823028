"""Where prompts go: to the replica with the least left to do, caches counted."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from glimt.frontend.client import EngineClient
from glimt.frontend.prompt import Prompt
from glimt.frontend.routing import BLOCK, Footprint, Memory
from glimt.metrics import Metrics
from glimt.wire import EngineInfo, SamplingParams
from tests.support.fake_engine import INFO, FakeEngine
from tests.support.spans import image_span

SHORT = SamplingParams(max_tokens=8, temperature=0.0)


def words(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, length).astype(np.int32)


def replicas(count: int) -> tuple[EngineClient, list[FakeEngine]]:
    client = EngineClient(clock=lambda: 1.0, metrics=Metrics(model_name="m"))
    engines = [FakeEngine(client, lambda submit: range(8), index) for index in range(count)]
    for engine in engines:
        engine.start()
    return client, engines


def place_of(client: EngineClient, engines: list[FakeEngine], prompt: Prompt, **salt: bytes) -> int:
    before = [len(engine.submits) for engine in engines]
    client.generate(prompt, SHORT, **salt)
    after = [len(engine.submits) for engine in engines]
    return next(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)


def test_new_prompts_are_spread_by_what_is_left_to_do() -> None:
    client, engines = replicas(3)
    places = [place_of(client, engines, Prompt(words(seed, 300))) for seed in range(6)]
    assert sorted(places) == [0, 0, 1, 1, 2, 2]


def test_a_conversation_stays_where_its_beginning_is() -> None:
    client, engines = replicas(3)
    first = words(0, 1200)
    place = place_of(client, engines, Prompt(first))
    for turn in range(1, 5):
        engines[place].step()
        longer = np.concatenate([first, words(turn, 100 * turn)])
        assert place_of(client, engines, Prompt(longer)) == place


def test_a_conversation_moves_once_its_replica_is_behind_by_more_than_its_beginning() -> None:
    client, engines = replicas(2)
    first = words(0, 640)
    place = place_of(client, engines, Prompt(first))
    engines[place].step()
    taken = [place_of(client, engines, Prompt(np.append(first, words(n, 200)))) for n in range(20)]
    assert taken[0] == place
    assert set(taken) == {0, 1}


def test_the_same_image_goes_where_it_was_encoded() -> None:
    client, engines = replicas(4)
    places = []
    for content in (1, 2, 3, 1, 2, 3):
        prompt = Prompt(words(len(places), 700), images=(image_span(content, 10, 600),))
        places.append(place_of(client, engines, prompt))
        engines[places[-1]].step()
    assert places[:3] == places[3:]
    assert len(set(places[:3])) == 3


def test_tenants_with_different_salts_share_nothing() -> None:
    prompt = Prompt(words(0, 640))
    memory = Memory(INFO)
    memory.note(Footprint.of(prompt, b"a"))
    assert memory.work(Footprint.of(prompt, b"a")) == 1
    assert memory.work(Footprint.of(prompt, b"b")) == 640


def test_equal_tokens_with_another_image_are_another_prompt() -> None:
    memory = Memory(INFO)
    tokens = words(0, 4 * BLOCK)
    memory.note(Footprint.of(Prompt(tokens, images=(image_span(1, BLOCK, 10),)), b""))
    other = Footprint.of(Prompt(tokens, images=(image_span(2, BLOCK, 10),)), b"")
    assert memory.work(other) == 3 * BLOCK + 10


def test_a_replaced_engine_remembers_nothing() -> None:
    client, engines = replicas(2)
    prompt = Prompt(words(0, 1200))
    place = place_of(client, engines, prompt)
    engines[place].die("gone")
    engines[place].start()
    other = Prompt(words(1, 100))
    assert place_of(client, engines, other) in (0, 1)
    assert place_of(client, engines, Prompt(words(0, 1200))) in (0, 1)


SMALL = EngineInfo(
    max_model_len=4096,
    vocab_size=1000,
    num_pages=8,
    page_size=BLOCK,
    max_num_batched_tokens=64,
    max_num_seqs=4,
    max_image_tokens=100,
)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 12 * BLOCK)), max_size=30))
def test_a_memory_holds_no_more_than_its_replica_and_never_counts_below_one(
    prompts: list[tuple[int, int]],
) -> None:
    memory = Memory(SMALL)
    for seed, length in prompts:
        footprint = Footprint.of(Prompt(words(seed, 12 * BLOCK)[:length]), b"")
        work = memory.work(footprint)
        assert max(1, length - 8 * BLOCK) <= work <= length
        memory.note(footprint)
        if length <= 8 * BLOCK:
            assert memory.work(footprint) == max(1, length % BLOCK)
