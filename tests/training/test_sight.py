"""The tower's telling of its own rows."""

import numpy as np
import pytest
import torch

from training.sample import LABEL_CLASSES, NUM_CHARACTERS, NUM_LABELS
from training.sight import Sight, sight_weight

WIDTH = 8


def labels(*rows: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(np.array(rows), dtype=torch.int32)


NOTHING = (-1,) * NUM_LABELS
GROUND = (0,) * NUM_LABELS
RED_BOX = (1, 2, *(0,) * NUM_CHARACTERS, 100, 200, 300, 400)


def told(sight: Sight, row: tuple[int, ...]) -> torch.Tensor:
    """The head's output that says exactly `row`."""
    parts = [20.0 * torch.eye(size)[label] for size, label in zip(LABEL_CLASSES, row, strict=False)]
    return torch.cat([*parts, torch.tensor(row[len(LABEL_CLASSES) :]) / 1000])


def test_saying_what_is_there_costs_nothing_and_anything_else_costs() -> None:
    sight = Sight(sum(LABEL_CLASSES) + 4)
    with torch.no_grad():
        sight.head.weight.copy_(torch.eye(sight.head.in_features))
        sight.head.bias.zero_()
    right = sight(told(sight, RED_BOX)[None], labels(RED_BOX))
    assert right < 1e-4
    for wrong in ((2, *RED_BOX[1:]), (1, 3, *RED_BOX[2:]), (*RED_BOX[:-1], 900)):
        assert sight(told(sight, wrong)[None], labels(RED_BOX)) > 1.0


def test_tokens_of_which_nothing_is_known_count_nothing() -> None:
    sight = Sight(WIDTH)
    images = torch.randn(3, WIDTH, requires_grad=True)
    sight(images, labels(NOTHING, RED_BOX, NOTHING)).backward()
    assert images.grad is not None
    assert images.grad[0].abs().sum() == images.grad[2].abs().sum() == 0
    assert images.grad[1].abs().sum() > 0


def test_the_ground_has_no_box() -> None:
    sight = Sight(WIDTH)
    images = torch.randn(1, WIDTH)
    before = sight(images, labels(GROUND))
    with torch.no_grad():
        sight.head.bias[-4:] += 5.0
    assert sight(images, labels(GROUND)) == before


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_answers_take_over(progress: float) -> None:
    assert sight_weight(progress) <= sight_weight(max(0.0, progress - 0.2))
    assert 0 < sight_weight(progress) < 1


def test_characters_weigh_more_where_there_are_some() -> None:
    sight = Sight(WIDTH)
    with torch.no_grad():
        sight.head.weight.zero_()
        sight.head.bias.zero_()
    letter = (1, 2, *(34,) * NUM_CHARACTERS, 0, 0, 0, 0)
    without = sight(torch.zeros(1, WIDTH), labels(RED_BOX[:-4] + (0,) * 4))
    with_text = sight(torch.zeros(1, WIDTH), labels(letter))
    of_a_character = float(np.log(LABEL_CLASSES[2]))
    assert float((with_text - without).detach()) == pytest.approx(
        2 * NUM_CHARACTERS * of_a_character
    )
