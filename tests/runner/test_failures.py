"""What goes wrong stays where it went wrong: one row, or one step."""

import copy
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from glimt.engine.plan import RowWork, StepPlan
from glimt.wire import ImageSpan, PixelRef, SamplingParams
from tests.support.schedules import Schedule
from tests.support.tiny_model import Album, Ask, make_ask, make_executor, new_row, tiny_model

ALBUM = Album()
KIND = "glm4v"


def whole(ask: Ask, row: int, *, first_page: int) -> tuple[RowWork, int]:
    """The work of a whole prompt in fresh pages, and the next free page."""
    length = len(ask.token_ids)
    end = first_page + -(-(length + 1) // 4)
    return RowWork(row, 0, length, tuple(range(first_page, end)), samples=True), end


def alone(ask: Ask) -> int:
    executor = make_executor(tiny_model(KIND), ALBUM)
    return Schedule(executor, [ask], whole=True).run()[0][0]


def with_pixels(ask: Ask, pixels: PixelRef) -> Ask:
    """The same request, whose first image lies elsewhere."""
    first = msgspec.structs.replace(ask.images[0], pixels=pixels)
    return replace(ask, images=(first, *ask.images[1:]))


@pytest.mark.parametrize(
    "pixels",
    [
        PixelRef(0, 0, 100),  # not as many bytes as the grid needs
        PixelRef(0, 1 << 40, 24 * 588),  # outside of the arena
        PixelRef(7, 0, 24 * 588),  # no such arena
        PixelRef(-1, 0, 24 * 588),
    ],
)
def test_unreadable_pixels_end_their_row_only(pixels: PixelRef) -> None:
    good, other = make_ask(ALBUM, "tit", 1), make_ask(ALBUM, "tit", 2)
    bad = with_pixels(other, pixels)
    executor = make_executor(tiny_model(KIND), ALBUM)
    bad_work, page = whole(bad, 0, first_page=0)
    good_work, page = whole(good, 1, first_page=page)
    plan = StepPlan(
        1,
        new_rows=(new_row(bad, 0), new_row(good, 1)),
        encode=(bad.images[0], good.images[0]),
        work=(bad_work, good_work),
    )
    result = executor.launch(plan).result()
    assert result.token_ids == {1: alone(good)}
    assert {row: error.code for row, error in result.failed.items()} == {0: "step_failed"}
    # A step that was planned before this was known fails for that row as well, and the row and
    # the image are as good as new for the next request.
    late = (RowWork(0, len(bad.token_ids), 1, samples=True),)
    assert set(executor.launch(StepPlan(2, work=late)).result().failed) == {0}
    work, _ = whole(other, 0, first_page=page)
    result = executor.launch(StepPlan(3, (0,), (new_row(other, 0),), work=(work,))).result()
    assert result.token_ids == {0: alone(other)}


def test_an_image_is_read_from_the_request_whose_pixels_are_good() -> None:
    good = make_ask(ALBUM, "tit", 1)
    bad = with_pixels(good, PixelRef(0, 0, 1))
    executor = make_executor(tiny_model(KIND), ALBUM)
    first, page = whole(bad, 0, first_page=0)
    second, _ = whole(good, 1, first_page=page)
    rows = (new_row(bad, 0), new_row(good, 1))
    plan = StepPlan(1, new_rows=rows, encode=(bad.images[0],), work=(first, second))
    result = executor.launch(plan).result()
    assert result.token_ids == {0: alone(good), 1: alone(good)}


def test_a_grid_that_is_not_made_of_merge_blocks_ends_its_row_only() -> None:
    ask = make_ask(ALBUM, "tit", 1)
    image: ImageSpan = msgspec.structs.replace(ask.images[0], grid_h=3, grid_w=8)
    bad = replace(ask, images=(image,))
    executor = make_executor(tiny_model(KIND), ALBUM)
    work, _ = whole(bad, 0, first_page=0)
    plan = StepPlan(1, new_rows=(new_row(bad, 0),), encode=bad.images, work=(work,))
    assert set(executor.launch(plan).result().failed) == {0}


def test_a_request_that_does_not_fit_its_row_fails_alone() -> None:
    good = make_ask(ALBUM, "tt", 1)
    bad = replace(make_ask(ALBUM, "tt", 2), token_ids=np.array([1, 2, 99_999], np.int32))
    executor = make_executor(tiny_model(KIND), ALBUM)
    first, page = whole(bad, 0, first_page=0)
    second, _ = whole(good, 1, first_page=page)
    plan = StepPlan(1, new_rows=(new_row(bad, 0), new_row(good, 1)), work=(first, second))
    result = executor.launch(plan).result()
    assert result.token_ids == {1: alone(good)}
    assert result.failed[0].code == "step_failed"


@pytest.mark.parametrize("kind", ["glm4v", "glm4v_moe"])
def test_a_row_whose_numbers_are_gone_fails_alone(kind: str) -> None:
    model = copy.deepcopy(tiny_model(kind))
    model.embedding.weight[77] = torch.nan
    good = make_ask(ALBUM, "tbt", 1, max_tokens=4)
    bad = replace(make_ask(ALBUM, "tt", 2), token_ids=np.array([1, 77, 3], np.int32))
    assert 77 not in good.token_ids
    expected = Schedule(make_executor(tiny_model(kind), ALBUM), [good]).run()[0]
    executor = make_executor(model, ALBUM)
    work, page = whole(good, 0, first_page=0)
    bad_work, _ = whole(bad, 1, first_page=page + 4)
    rows = (new_row(bad, 1), new_row(good, 0))
    plan = StepPlan(1, new_rows=rows, encode=good.images, work=(bad_work, work))
    result = executor.launch(plan).result()
    assert {row: error.code for row, error in result.failed.items()} == {1: "numerical_error"}
    tokens, start = [result.token_ids[0]], len(good.token_ids)
    for index in range(start, start + 3):  # its companion goes on, in pages next to the bad ones
        pages = (page + index,) if index // 4 >= len(work.new_pages) else ()
        plan = StepPlan(index, (1,), work=(RowWork(0, index, 1, pages, samples=True),))
        tokens.append(executor.launch(plan).result().token_ids[0])
    assert tokens == expected


def test_a_step_that_raises_leaves_the_executor_usable() -> None:
    ask = make_ask(ALBUM, "tit", 1)
    executor = make_executor(tiny_model(KIND), ALBUM)
    work, _ = whole(ask, 0, first_page=0)
    impossible = RowWork(1, 0, 3, samples=True)  # a row that nobody took, without pages
    plan = StepPlan(1, new_rows=(new_row(ask, 0),), encode=ask.images, work=(work, impossible))
    step = executor.launch(plan)
    assert step.plan is plan
    with pytest.raises(ValueError, match="row 1 cannot compute"):
        step.result()
    # What its bookkeeping said still holds: the row is taken and has its pages.
    again = RowWork(0, 0, len(ask.token_ids), samples=True)
    result = executor.launch(StepPlan(2, work=(again,))).result()
    assert result.token_ids == {0: alone(ask)}


def test_a_plan_without_work_frees_and_encodes() -> None:
    ask = make_ask(ALBUM, "tit", 1)
    executor = make_executor(tiny_model(KIND), ALBUM)
    result = executor.launch(StepPlan(1, encode=ask.images)).result()
    assert (result.step, result.token_ids, result.failed) == (1, {}, {})


def test_sampling_parameters_of_the_row_before_are_gone() -> None:
    first = make_ask(ALBUM, "tt", 1)
    biased = replace(
        first, sampling=SamplingParams(max_tokens=1, temperature=0.0, logit_bias={9: 500.0})
    )
    executor = make_executor(tiny_model(KIND), ALBUM)
    work, _ = whole(first, 0, first_page=0)
    plan = StepPlan(1, new_rows=(new_row(biased, 0),), work=(work,))
    assert executor.launch(plan).result().token_ids == {0: 9}
    plan = StepPlan(2, (0,), (new_row(first, 0),), work=(work,))
    assert executor.launch(plan).result().token_ids == {0: alone(first)}
