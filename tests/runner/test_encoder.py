"""Packing, keeping and dropping of image embeddings."""

import pytest
import torch
from torch import Tensor

from glimt.runner.encoder import ImageEncoder
from glimt.wire import ImageSpan
from tests.support.tiny_model import CPU, Album, tiny_model

ALBUM = Album()


class Tower:
    """The real tower, and how many patches each pass had."""

    def __init__(self, kind: str = "glm4v") -> None:
        self.passes: list[list[int]] = []
        self._model = tiny_model(kind)

    def encode_images(
        self, patches: list[Tensor], grids: list[tuple[int, int]], *, spread: bool = False
    ) -> list[Tensor]:
        assert not spread
        self.passes.append([len(image) for image in patches])
        with torch.inference_mode():
            return self._model.encode_images(patches, grids)


def image(height: int, width: int, *, frames: int = 1, seed: int = 0) -> ImageSpan:
    generator = torch.Generator().manual_seed(seed)
    shape = (height * width, 3, frames, 14, 14)
    patches = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return ALBUM.add(patches, (height, width), 0)


def encoder(tower: Tower, max_patches: int = 64) -> ImageEncoder:
    return ImageEncoder(
        tower, [ALBUM.arena], patch_size=14, merge_size=2, max_patches=max_patches, device=CPU
    )


IMAGES = [image(4, 4), image(2, 6), image(4, 6, frames=2), image(2, 2), image(8, 8)]


def test_passes_keep_to_the_patch_budget_except_for_one_large_image() -> None:
    tower = Tower()
    assert encoder(tower, max_patches=30).encode(IMAGES, []) == {}
    assert tower.passes == [[16, 12], [24, 4], [64]]


@pytest.mark.parametrize("kind", ["glm4v", "glm4v_moe"])
def test_an_image_has_the_same_embeddings_packed_and_alone(kind: str) -> None:
    packed = encoder(Tower(kind), max_patches=10**6)
    packed.encode(IMAGES, [])
    for span in IMAGES:
        single = encoder(Tower(kind))
        single.encode([span], [])
        whole = single.part(span.content_hash, 0, span.num_tokens)
        assert whole.shape == (span.num_tokens, 64)
        torch.testing.assert_close(
            packed.part(span.content_hash, 0, span.num_tokens), whole, rtol=1e-5, atol=1e-5
        )
        assert torch.equal(single.part(span.content_hash, 1, 2), whole[1:2])


def test_an_image_is_encoded_once_until_it_is_dropped() -> None:
    tower = Tower()
    images = encoder(tower)
    images.encode([IMAGES[0], IMAGES[0]], [IMAGES[0]])
    images.drop([])
    images.encode([IMAGES[0]], [IMAGES[0]])
    assert tower.passes == [[16]]
    images.drop([IMAGES[0].content_hash, b"never seen"])
    images.encode([], [IMAGES[0]])
    assert tower.passes == [[16], [16]]


def test_an_image_that_no_plan_accounts_for_stays_for_one_step() -> None:
    tower = Tower()
    images = encoder(tower)
    images.encode([], [IMAGES[1]])
    images.drop([])
    images.encode([], [IMAGES[1]])
    assert tower.passes == [[12], [12]]
    images.drop([])
    images.encode([IMAGES[1]], [IMAGES[1]])
    images.drop([])
    images.encode([], [IMAGES[1]])
    assert tower.passes == [[12], [12], [12]]
