"""Decode steps by graphs draw the tokens of steps without; here work that is done again stands
for a replay, which takes all that a graph needs but the recording."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.engine.plan import RowWork, StepPlan, TokenMasks
from glimt.runner.executor import ModelExecutor
from glimt.runner.graphs import Work, draw_kind, row_sizes, sizes_at_start
from tests.support.schedules import Schedule
from tests.support.tiny_model import Album, Ask, make_ask, make_executor, new_row, tiny_model

ALBUM = Album()
FEATURES: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1.1, "top_p": 0.7},
    {"repetition_penalty": 1.4},
    {"temperature": 1.2, "logprobs": 2},
)


class Recorder:
    """Records nothing: a replay does the work again. `times` counts replays."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, work: Work) -> Work:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def asks_of(choices: list[tuple[str, int, int]]) -> list[Ask]:
    return [make_ask(ALBUM, layout, seed, **FEATURES[n]) for layout, seed, n in choices]


@pytest.mark.parametrize("kind", ["glm4v", "glm4v_moe"])
@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@settings(max_examples=4)
@given(
    choices=st.lists(
        st.tuples(
            st.sampled_from(["t", "tt", "tit", "tvt"]),
            st.integers(0, 2),
            st.integers(0, len(FEATURES) - 1),
        ),
        min_size=1,
        max_size=7,
    ),
    seed=st.integers(0, 2**16),
    depth=st.integers(1, 3),
)
def test_graphs_change_no_token_whatever_comes_and_goes(
    kind: str, kv_dtype: str, choices: list[tuple[str, int, int]], seed: int, depth: int
) -> None:
    asks = asks_of(choices)
    model, recorder = tiny_model(kind), Recorder()
    plain = Schedule(make_executor(model, ALBUM, kv_dtype=kv_dtype), asks, seed=seed, depth=depth)
    graphs = make_executor(model, ALBUM, kv_dtype=kv_dtype, record=recorder)
    replayed = Schedule(graphs, asks, seed=seed, depth=depth)
    assert replayed.run() == plain.run()
    for one, other in zip(replayed.courses, plain.courses, strict=True):
        for ours, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def decode(executor: ModelExecutor, asks: list[Ask], num_steps: int = 4) -> list[dict[int, int]]:
    """Prompts in one step, then one token for each in every step."""
    pages = [tuple(range(6 * n, 6 * n + 6)) for n in range(len(asks))]
    rows = tuple(new_row(ask, n, pages[n]) for n, ask in enumerate(asks))
    lengths = [len(ask.token_ids) for ask in asks]
    work = tuple(RowWork(n, 0, length, samples=True) for n, length in enumerate(lengths))
    tokens = [executor.launch(StepPlan(0, new_rows=rows, work=work)).result().token_ids]
    for step in range(num_steps):
        work = tuple(RowWork(n, length + step, 1, (), True) for n, length in enumerate(lengths))
        tokens.append(executor.launch(StepPlan(1 + step, work=work)).result().token_ids)
    return tokens


def test_a_kind_of_step_is_recorded_once_and_replayed_from_then_on() -> None:
    recorder = Recorder()
    asks = [make_ask(ALBUM, "tt", seed) for seed in range(3)]
    decode(make_executor(tiny_model("glm4v"), ALBUM, record=recorder), asks)
    assert (recorder.recorded, recorder.replayed) == (2, 2 * 3)  # logits, and the draw


@pytest.mark.parametrize("num_rows", [1, 3, 5])
def test_padding_rows_disturb_nobody(num_rows: int) -> None:
    """Each row's tokens are those that it draws alone."""
    asks = [
        make_ask(ALBUM, "t" * (1 + seed % 3), seed, temperature=1.0) for seed in range(num_rows)
    ]
    model = tiny_model("glm4v_moe")
    together = decode(make_executor(model, ALBUM, record=Recorder()), asks)
    for n, ask in enumerate(asks):
        alone = decode(make_executor(model, ALBUM), [ask])
        assert [tokens[n] for tokens in together] == [tokens[0] for tokens in alone]


def test_rows_under_a_grammar_draw_within_their_masks() -> None:
    ask = make_ask(ALBUM, "tt", 1)
    length = len(ask.token_ids)
    vocab_size = tiny_model("glm4v").config.text.vocab_size
    bits = np.zeros((1, -(-vocab_size // 32)), np.int32)
    bits[0, 1] = 1 << 9  # token 41 alone
    executor = make_executor(tiny_model("glm4v"), ALBUM, record=Recorder())
    first = RowWork(0, 0, length, samples=True)
    executor.launch(StepPlan(0, new_rows=(new_row(ask, 0, (0, 1, 2)),), work=(first,))).result()
    for index in range(length, length + 3):
        work = RowWork(0, index, 1, samples=True)
        step = executor.launch(StepPlan(index, work=(work,), waits_for_masks=True))
        step.draw(TokenMasks((0,), bits))
        assert step.result().token_ids == {0: 41}


def test_work_that_cannot_be_recorded_is_done_without() -> None:
    def refuse(work: Work) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing")

    asks = [make_ask(ALBUM, "tt", seed) for seed in range(2)]
    model = tiny_model("glm4v")
    expected = decode(make_executor(model, ALBUM), asks)
    assert decode(make_executor(model, ALBUM, record=refuse), asks) == expected


def test_a_step_for_which_padding_leaves_no_memory_runs_without_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    asks = [make_ask(ALBUM, "tt", seed) for seed in range(2)]
    model = tiny_model("glm4v")
    expected = decode(make_executor(model, ALBUM), asks)
    monkeypatch.setattr("glimt.runner.graphs.DecodeGraphs._compute_logits", exhausted)
    assert decode(make_executor(model, ALBUM, record=Recorder()), asks) == expected


@pytest.mark.parametrize("max_rows", [1, 2, 5, 8, 100, 256, 300, 1024])
def test_sizes_grow_to_the_most_rows_there_can_be(max_rows: int) -> None:
    sizes = row_sizes(max_rows)
    assert sizes[-1] == max_rows
    assert list(sizes) == sorted(set(sizes))
    assert sizes[0] == 1
    at_start = sizes_at_start(max_rows)
    assert set(at_start) <= set(sizes)
    assert at_start[-1] == max_rows


def test_more_rows_than_64_are_filled_up_by_few() -> None:
    """Where padding may cost a round of attention's programs; the start does not wait for it."""
    sizes = row_sizes(128)
    for num_rows in range(65, 129):
        assert next(size for size in sizes if size >= num_rows) - num_rows < 8
    assert len(sizes_at_start(128)) == len(sizes) - 6
    assert 80 in sizes_at_start(80)


def test_candidates_are_rounded_up_so_that_few_graphs_serve_all() -> None:
    def kind(top_k: int, top_p: float = 1.0) -> int:
        arrays = {
            "row_N": np.zeros(1, np.int64),
            "length_N": np.ones(1, np.int64),
            "top_k_N": np.array([top_k]),
            "top_p_N": np.array([top_p], np.float32),
        }
        chosen = draw_kind(arrays, 5000)
        assert chosen is not None
        return chosen.num_candidates

    assert [kind(k) for k in (1, 64, 65, 1024, 1025, 4999)] == [64, 64, 1024, 1024, 5000, 5000]
    assert kind(5000, 0.9) == 5000


def test_graphs_recorded_at_the_start_serve_the_steps_that_come() -> None:
    recorder = Recorder()
    asks = [make_ask(ALBUM, "tt", seed) for seed in range(3)]
    executor = make_executor(tiny_model("glm4v_moe"), ALBUM, record=recorder)
    executor.record_graphs()
    at_start = recorder.recorded
    assert at_start == len(row_sizes(8)) + 1  # and of prompts those that fit 160 tokens
    assert decode(executor, asks) == decode(make_executor(tiny_model("glm4v_moe"), ALBUM), asks)
    assert recorder.recorded == at_start + 1  # the draw
    assert prompts(executor, asks) == prompts(make_executor(tiny_model("glm4v_moe"), ALBUM), asks)


def prompts(executor: ModelExecutor, asks: list[Ask]) -> list[dict[int, int]]:
    """Steps that each compute a prompt with an image and draw for a row that decodes."""
    first = make_ask(ALBUM, "tt", 9)
    length = len(first.token_ids)
    work = RowWork(0, 0, length, samples=True)
    steps = [StepPlan(0, new_rows=(new_row(first, 0, tuple(range(8))),), work=(work,))]
    for n, ask in enumerate(asks):
        pages = tuple(range(8 + 8 * n, 16 + 8 * n))
        decoding = RowWork(0, length + n, 1, samples=True)
        prompt = RowWork(1 + n, 0, len(ask.token_ids), samples=True)
        row = new_row(ask, 1 + n, pages)
        steps.append(StepPlan(1 + n, new_rows=(row,), encode=ask.images, work=(decoding, prompt)))
    return [executor.launch(step).result().token_ids for step in steps]


@pytest.mark.parametrize("kind", ["glm4v", "glm4v_moe"])
def test_prompts_beside_decoding_rows_are_replayed_from_their_second_time_on(kind: str) -> None:
    recorder = Recorder()
    asks = [make_ask(ALBUM, layout, seed) for seed, layout in enumerate(("tit", "it", "tbt", "t"))]
    replayed = prompts(make_executor(tiny_model(kind), ALBUM, record=recorder), asks)
    assert replayed == prompts(make_executor(tiny_model(kind), ALBUM), asks)
    assert (recorder.recorded, recorder.replayed) == (1, 3)


def test_steps_of_more_tokens_than_graphs_are_made_for_run_as_they_are() -> None:
    recorder = Recorder()
    limits: dict[str, Any] = {"max_model_len": 1200, "num_pages": 600, "record": recorder}
    executor = make_executor(tiny_model("glm4v"), ALBUM, **limits)
    long = replace(make_ask(ALBUM, "t", 1), token_ids=np.ones(1100, np.int32))
    rows = tuple(new_row(long, n, tuple(range(300 * n, 300 * n + 300))) for n in range(2))
    for step in range(2):
        work = tuple(RowWork(n, 0, 1100) for n in range(2))
        executor.launch(StepPlan(step, new_rows=rows, work=work)).result()
    assert recorder.recorded == 0
