"""What is said of a picture's tokens is what their cells show."""

import random

import numpy as np

from training.sample import LABEL_CLASSES, NUM_CHARACTERS, NUM_LABELS
from training.scenes.cells import COLOUR_NUMBERS, KIND_NUMBERS, TEXT_KIND, cell_labels
from training.scenes.draw import draw
from training.scenes.scene import PLAIN, Recipe, Scene, Shape, compose
from training.source import make_source

CELL = 28


def scenes(**wishes: int) -> list[Scene]:
    rng = random.Random(5)
    return [compose(Recipe(168, 112, **wishes), rng) for _ in range(60)]


def test_every_thing_is_seen_where_it_is_and_nowhere_else() -> None:
    for scene in scenes(num_shapes=2):
        labels = cell_labels(scene, 4, 6).reshape(4, 6, NUM_LABELS)
        for item in scene.shapes:
            here = np.argwhere(
                (labels[..., 0] == COLOUR_NUMBERS[item.colour])
                & (labels[..., 1] == KIND_NUMBERS[item.shape])
            )
            assert len(here)
            left, top, right, bottom = item.box
            for row, column in here:
                assert column * CELL < right
                assert (column + 1) * CELL > left
                assert row * CELL < bottom
                assert (row + 1) * CELL > top


def test_the_ground_is_where_no_ink_is() -> None:
    for scene in scenes(num_shapes=1):
        if scene.ground.noise or scene.ground.far != scene.ground.rgb:
            continue
        pixels = np.asarray(draw(scene)).astype(int)
        ink = np.abs(pixels - np.array(scene.ground.rgb)).sum(2) > 60
        inked = ink.reshape(4, CELL, 6, CELL).mean((1, 3)).ravel()
        shown = cell_labels(scene, 4, 6)[:, 0] > 0
        assert not np.any(~shown & (inked > 0.05))
        assert shown[inked > 0.3].all()


def test_characters_stand_in_their_cells_in_the_order_of_the_text() -> None:
    num_checked = 0
    for scene in scenes(num_shapes=0, num_texts=1):
        labels = cell_labels(scene, 4, 6).reshape(4, 6, NUM_LABELS)
        for text in scene.texts:
            row = int((labels[..., 1] == TEXT_KIND).sum(1).argmax())
            codes = [int(code) for code in labels[row, :, 2 : 2 + NUM_CHARACTERS].ravel() if code]
            seen = "".join(chr(code + 31) for code in codes)
            kept = [char for i, char in enumerate(seen) if i == 0 or char != seen[i - 1]]
            remaining = iter(text.text)
            assert all(char in remaining for char in kept), (text.text, seen)
            num_checked += 1
    assert num_checked > 20


def test_boxes_are_the_things_own() -> None:
    for scene in scenes(num_shapes=1):
        labels = cell_labels(scene, 4, 6)
        for item in (i for i in scene.items if isinstance(i, Shape)):
            sides = np.array(item.box) / np.array([168, 112, 168, 112]) * 1000
            for label in labels[labels[:, 0] > 0]:
                np.testing.assert_allclose(label[len(LABEL_CLASSES) :], sides, atol=0.6)


def test_labels_fit_their_classes_in_every_sample() -> None:
    for seed in range(60):
        for picture in make_source().sample(seed, 1.0, held_out=seed % 2 == 0).pictures:
            assert picture.labels is not None
            assert picture.labels.shape == (picture.num_tokens, NUM_LABELS)
            assert picture.labels.min() >= 0
            assert (picture.labels[:, : len(LABEL_CLASSES)] < np.array(LABEL_CLASSES)).all()
            assert picture.labels[:, len(LABEL_CLASSES) :].max(initial=0) <= 1000


def test_every_look_of_a_text_prints_within_its_box_and_fills_it() -> None:
    num_checked = 0
    for scene in scenes(num_shapes=0, num_texts=1):
        ground = scene.ground
        if ground.noise or ground.far != ground.rgb or not scene.texts:
            continue
        (text,) = scene.texts
        pixels = np.asarray(draw(scene)).astype(int)
        rows, columns = np.nonzero(np.abs(pixels - np.array(ground.rgb)).sum(2) > 60)
        left, top, right, bottom = text.box
        assert left - 2 <= columns.min() <= left + 3 + text.em * 0.15, text
        assert right - 4 - text.em * 0.25 <= columns.max() <= right + 2, text
        assert top - 2 <= rows.min()
        assert rows.max() <= bottom + 2
        num_checked += text.look != PLAIN
    assert num_checked > 10
