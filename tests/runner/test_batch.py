"""Batches against an oracle that looks at one token at a time."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glimt.engine.plan import NewRow, RowWork
from glimt.runner.batch import Batch, build_batch, gather_work
from glimt.runner.rows import RowTable
from glimt.wire import SamplingParams
from tests.support.spans import image_span

MAX_ROWS, MAX_LEN, VOCAB = 6, 40, 50
GREEDY = SamplingParams(max_tokens=1, temperature=0.0)


def table(page_size: int = 4) -> RowTable:
    return RowTable(
        max_rows=MAX_ROWS,
        max_model_len=MAX_LEN,
        page_size=page_size,
        vocab_size=VOCAB,
        device=torch.device("cpu"),
    )


@dataclass
class Plan:
    new: NewRow
    work: RowWork
    num_known_pages: int


@st.composite
def planned_rows(draw: st.DrawFn, page_size: int) -> list[Plan]:
    rows = draw(st.lists(st.integers(0, MAX_ROWS - 1), min_size=1, max_size=4, unique=True))
    free_pages = draw(st.permutations(range(200)))
    plans = []
    for row in rows:
        length = draw(st.integers(1, MAX_LEN))
        num_prompt = draw(st.integers(1, length))
        start = draw(st.integers(0, length - 1))
        end = draw(st.integers(start + 1, length))
        pages = tuple(free_pages.pop() for _ in range(-(-end // page_size)))
        num_known = draw(st.integers(0, len(pages)))
        generator = np.random.default_rng(draw(st.integers(0, 99)))
        has_positions = draw(st.booleans())
        spans, at = [], 0
        while has_positions and at < num_prompt - 1 and draw(st.booleans()):
            at += draw(st.integers(0, 3))
            size = draw(st.integers(1, 8))
            if at + size > num_prompt:
                break
            spans.append(image_span(draw(st.integers(0, 3)), at, size))
            at += size
        new = NewRow(
            row=row,
            token_ids=generator.integers(0, VOCAB, length).astype(np.int32),
            num_prompt_tokens=num_prompt,
            positions=generator.integers(0, 99, (3, num_prompt)).astype(np.int32)
            if has_positions
            else None,
            rope_delta=int(generator.integers(-9, 9)) if has_positions else 0,
            images=tuple(spans),
            sampling=GREEDY,
            page_ids=pages[:num_known],
        )
        work = RowWork(row, start, end - start, pages[num_known:], samples=end == length)
        plans.append(Plan(new, work, num_known))
    return plans


@given(data=st.data(), page_size=st.sampled_from([1, 3, 4, 16]))
def test_a_batch_is_what_each_of_its_tokens_says(data: st.DataObject, page_size: int) -> None:
    plans = data.draw(planned_rows(page_size))
    rows = table(page_size)
    rows.tokens_RL.fill_(-1)
    for plan in plans:
        rows.take(plan.new)
    work = [plan.work for plan in plans]
    rows.advance(work)
    batch = build_batch(rows, work, gather_work(rows, work))
    flat_tokens = rows.tokens_RL.view(-1)
    t = 0
    images = iter([] if batch.image_index_I is None else batch.image_index_I.tolist())
    parts = iter(batch.image_parts)
    drawn, hidden = [], []
    for r, plan in enumerate(plans):
        new, item = plan.new, plan.work
        pages = new.page_ids + item.new_pages
        assert batch.step.query_starts_R1[r] == t
        assert batch.step.context_lens_R[r] == item.start + item.num_tokens
        assert batch.step.page_table_RM[r, : len(pages)].tolist() == list(pages)
        for i in range(item.start, item.start + item.num_tokens):
            assert flat_tokens[batch.token_place_T[t]] == new.token_ids[i]
            assert batch.step.slots_T[t] == pages[i // page_size] * page_size + i % page_size
            if i >= new.num_prompt_tokens:
                position = [i + new.rope_delta] * 3
            elif new.positions is None:
                position = [i] * 3
            else:
                position = new.positions[:, i].tolist()
            assert batch.step.positions_3T[:, t].tolist() == position
            for image in new.images:
                if image.start <= i < image.start + image.num_tokens:
                    assert next(images) == t
                    if i in (image.start, item.start):
                        part = next(parts)
                    assert part.span == image
                    assert part.low <= i - image.start < part.high
            t += 1
        if item.samples:
            drawn.append(item.row * rows.tokens_RL.shape[1] + item.start + item.num_tokens)
            hidden.append(t - 1)
    assert next(images, None) is None
    assert next(parts, None) is None
    assert batch.step.query_starts_R1[-1] == t == len(batch.token_place_T)
    assert batch.hidden_index_N.tolist() == hidden
    assert batch.drawn_place_N.tolist() == drawn
    assert batch.sampling_rows == [item.row for item in work if item.samples]
    assert batch.step.max_query_len == max(item.num_tokens for item in work)
    assert batch.step.max_context_len == max(item.start + item.num_tokens for item in work)
    assert batch.step.num_chunk_pages == sum(
        -(-(item.start + item.num_tokens) // page_size) for item in work if item.num_tokens > 1
    )


def new_row(row: int, length: int, pages: tuple[int, ...]) -> NewRow:
    return NewRow(row, np.arange(length, dtype=np.int32), length, None, 0, (), GREEDY, pages)


def build(rows: RowTable, *work: RowWork) -> Batch:
    rows.advance([*work])
    return build_batch(rows, work, gather_work(rows, work))


def test_a_drawn_token_counts_as_known_before_the_host_sees_it() -> None:
    rows = table()
    rows.take(new_row(2, 5, (7, 8)))
    first = build(rows, RowWork(2, 0, 5, samples=True))
    rows.tokens_RL.view(-1)[first.drawn_place_N] = 33
    second = build(rows, RowWork(2, 5, 1, samples=True))
    assert rows.tokens_RL.view(-1)[second.token_place_T].tolist() == [33]
    assert second.step.slots_T.tolist() == [8 * 4 + 1]


def test_a_row_taken_again_shows_nothing_of_the_request_before() -> None:
    rows = table()
    positions = np.full((3, 6), 50, np.int32)
    tokens = np.arange(6, dtype=np.int32)
    rows.take(NewRow(1, tokens, 6, positions, 9, (image_span(1, 0, 4),), GREEDY, (3, 4)))
    rows.free(1)
    rows.take(new_row(1, 6, (5,)))
    batch = build(rows, RowWork(1, 4, 2, (6,), samples=True))
    assert batch.step.page_table_RM.tolist() == [[5, 6]]
    assert batch.step.positions_3T.tolist() == [[4, 5]] * 3
    assert batch.image_index_I is None


def test_a_freed_row_takes_no_work() -> None:
    rows = table()
    rows.take(new_row(1, 6, (3, 4)))
    rows.free(1)
    with pytest.raises(ValueError, match="row 1 cannot compute"):
        build(rows, RowWork(1, 4, 2))


@pytest.mark.parametrize(
    "work",
    [
        RowWork(0, 0, 7),  # tokens it does not have
        RowWork(0, 4, 2),  # beyond its pages
        RowWork(0, 3, 0),
        RowWork(0, -1, 2),
    ],
)
def test_work_that_its_row_cannot_do_is_refused(work: RowWork) -> None:
    rows = table()
    rows.take(new_row(0, 6, (1,)))
    with pytest.raises(ValueError, match="row 0 cannot compute"):
        build(rows, work)


@pytest.mark.parametrize(
    "new",
    [
        new_row(0, MAX_LEN + 3, (1,)),
        new_row(0, 4, tuple(range(12))),
        NewRow(0, np.array([VOCAB], np.int32), 1, None, 0, (), GREEDY, (1,)),
        NewRow(0, np.array([-1], np.int32), 1, None, 0, (), GREEDY, (1,)),
        NewRow(0, np.arange(4, dtype=np.int32), 4, np.zeros((3, 5), np.int32), 0, (), GREEDY, ()),
    ],
)
def test_requests_that_do_not_fit_a_row_are_refused(new: NewRow) -> None:
    with pytest.raises(ValueError):
        table().take(new)
