"""Positions on three axes, against transformers."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.glm4v.modeling_glm4v import Glm4vModel

from glimt.frontend.positions import mrope_positions
from glimt.wire import ImageSpan, PixelRef

_GRID = st.tuples(st.integers(1, 6), st.integers(1, 6))
# Runs of a prompt: words, images, and videos of several steps with words after each.
_RUN = st.one_of(
    st.tuples(st.just("text"), st.integers(1, 9)),
    st.tuples(st.just("image"), _GRID),
    st.tuples(st.just("video"), st.tuples(_GRID, st.integers(1, 4), st.integers(1, 4))),
)


def _expected(types: list[int], images: list[list[int]], videos: list[list[int]]):
    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))
    model = SimpleNamespace(
        config=config, get_vision_position_ids=partial(Glm4vModel.get_vision_position_ids, None)
    )
    positions, delta = Glm4vModel.get_rope_index(
        model,
        torch.zeros((1, len(types)), dtype=torch.long),
        torch.tensor([types]),
        torch.tensor(images) if images else None,
        torch.tensor(videos) if videos else None,
    )
    return positions[:, 0].numpy(), int(delta)


@given(st.lists(_RUN, min_size=1, max_size=8))
def test_positions_equal_those_of_transformers(runs) -> None:
    types: list[int] = []
    images: list[list[int]] = []
    videos: list[list[int]] = []
    spans: list[ImageSpan] = []

    def add(kind: int, grid: tuple[int, int]) -> None:
        height, width = grid
        spans.append(
            ImageSpan(
                content_hash=b"",
                start=len(types),
                num_tokens=height * width,
                grid_h=2 * height,
                grid_w=2 * width,
                num_frames=kind,
                pixels=PixelRef(0, 0, 0),
            )
        )
        types.extend([kind] * (height * width))

    for kind, what in runs:
        if kind == "text":
            types += [0] * what
            continue
        types.append(0)  # begin of image or video
        if kind == "image":
            images.append([1, 2 * what[0], 2 * what[1]])
            add(1, what)
        else:
            grid, num_steps, num_words = what
            videos.append([num_steps, 2 * grid[0], 2 * grid[1]])
            for _ in range(num_steps):
                add(2, grid)
                types += [0] * num_words
        types.append(0)

    expected, expected_delta = _expected(types, images, videos)
    positions, delta = mrope_positions(len(types), spans, merge_size=2)
    assert delta == expected_delta
    if not spans:
        assert positions is None
        positions = np.tile(np.arange(len(types)), (3, 1))
    else:
        assert positions.dtype == np.int32
        assert positions.shape == (3, len(types))
    np.testing.assert_array_equal(positions, expected)


def test_the_worked_example() -> None:
    span = ImageSpan(
        content_hash=b"",
        start=5,
        num_tokens=6,
        grid_h=4,
        grid_w=6,
        num_frames=1,
        pixels=PixelRef(0, 0, 0),
    )
    positions, delta = mrope_positions(13, [span], merge_size=2)
    assert positions is not None
    assert positions[0].tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 8, 9]
    assert positions[1].tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 6, 6, 6, 8, 9]
    assert positions[2].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9]
    assert delta == -3
