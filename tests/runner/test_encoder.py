"""Packing, keeping and dropping of image embeddings."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from glimt.models.vision import Grid, Slices
from glimt.runner.encoder import ImageEncoder
from glimt.runner.pixels import PixelReader
from glimt.runner.tower_pass import slice_blocks
from glimt.wire import ErrorInfo, ImageSpan
from tests.support.tiny_model import CPU, Album, tiny_model

ALBUM = Album(1 << 25)


class Tower:
    """The real tower, and how many patches each pass had; `blocks` are launched so far."""

    def __init__(self, kind: str = "glm4v") -> None:
        self.passes: list[list[int]] = []
        self.blocks = 0
        self.is_broken = False
        self._model = tiny_model(kind)

    def encode_in_slices(self, patches: Sequence[Tensor], grids: Sequence[Grid]) -> Slices:
        self.passes.append([len(image) for image in patches])
        slices = self._model.encode_in_slices(patches, grids)
        while True:
            try:
                next(slices)
            except StopIteration as end:
                embeddings: list[Tensor] = end.value
                return embeddings
            self.blocks += 1
            if self.is_broken:
                raise RuntimeError("no memory")
            yield


def image(height: int, width: int, *, frames: int = 1, seed: int = 0) -> ImageSpan:
    generator = torch.Generator().manual_seed(seed)
    shape = (height * width, 3, frames, 14, 14)
    patches = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return ALBUM.add(patches, (height, width), 0)


class Encoder(ImageEncoder):
    """Encodes as an executor has it done."""

    def encode(self, planned: list[ImageSpan], used: list[ImageSpan]) -> dict[bytes, ErrorInfo]:
        self.start(planned)
        with torch.inference_mode():
            return self.finish(used)

    def step(self, num_tokens: int = 1) -> tuple[bytes, ...]:
        with torch.inference_mode():
            self.launch_slices(num_tokens)
        return self.encoded()


def encoder(tower: Tower, max_patches: int = 64) -> Encoder:
    reader = PixelReader([ALBUM.arena], patch_size=14, merge_size=2, device=CPU)
    return Encoder(tower, reader, max_patches=max_patches, device=CPU)  # type: ignore[arg-type]


IMAGES = [image(4, 4), image(2, 6), image(4, 6, frames=2), image(2, 2), image(8, 8)]


def test_passes_keep_to_the_patch_budget_except_for_one_large_image() -> None:
    tower = Tower()
    assert encoder(tower, max_patches=30).encode(IMAGES, IMAGES) == {}
    assert tower.passes == [[16, 12], [24, 4], [64]]


@pytest.mark.parametrize("kind", ["glm4v", "glm4v_moe"])
def test_an_image_has_the_same_embeddings_packed_and_alone(kind: str) -> None:
    packed = encoder(Tower(kind), max_patches=10**6)
    packed.encode(IMAGES, IMAGES)
    for span in IMAGES:
        single = encoder(Tower(kind))
        single.encode([span], [span])
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


def test_an_image_is_encoded_a_slice_at_a_time_behind_steps() -> None:
    large = image(64, 64)  # so large that a slice is one block
    assert slice_blocks(64 * 64, 1, "cpu") == 1
    tower = Tower()
    images = encoder(tower)
    images.start([large])
    told = [images.step() for _ in range(3)]
    assert tower.blocks == 2
    assert told == [(), (), (large.content_hash,)], "two blocks, and what comes after them"
    assert images.step() == (), "it is told once"
    alone = encoder(Tower())
    alone.encode([large], [large])
    part = (large.content_hash, 0, large.num_tokens)
    assert images.finish([large]) == {}
    assert torch.equal(images.part(*part), alone.part(*part))


def test_images_that_wait_at_the_same_time_go_through_the_tower_together() -> None:
    tower = Tower()
    images = encoder(tower, max_patches=30)
    images.start([IMAGES[0]])
    assert images.step() == (IMAGES[0].content_hash,)
    for one in IMAGES[1:]:  # of several steps
        images.start([one])
    assert len(images.step()) == 4
    assert tower.passes == [[16], [12], [24, 4], [64]]


def test_each_pass_that_waits_has_a_slice_behind_a_step() -> None:
    tower = Tower()
    images = encoder(tower, max_patches=64 * 64)
    three = [image(64, 64, seed=seed) for seed in (1, 2, 3)]
    images.start(three[:1])
    images.step()
    assert tower.blocks == 1
    images.start(three[1:])
    assert images.step() == (three[0].content_hash,)
    assert tower.blocks == 2 + 1, "three slices: one block and the end of one, one of another"
    assert images.step() == (three[1].content_hash,)
    assert [images.step() for _ in range(3)] == [(), (), (three[2].content_hash,)]


def test_a_step_that_reads_an_image_finishes_it_and_no_other() -> None:
    first, second = image(64, 64, seed=1), image(64, 64, seed=2)
    tower = Tower()
    images = encoder(tower, max_patches=64 * 64)
    images.start([first])
    images.step()
    images.start([second])
    assert images.encode([], [second]) == {}
    assert (tower.blocks, len(tower.passes)) == (1 + 2, 2)
    assert images.encoded() == (second.content_hash,)
    assert images.step(num_tokens=0) == (first.content_hash,), "with no row beside it, all at once"


def test_an_image_dropped_on_its_way_is_given_up() -> None:
    large = image(64, 64)
    tower = Tower()
    images = encoder(tower)
    images.start([large])
    images.step()
    images.start([IMAGES[0]])
    images.drop([large.content_hash, IMAGES[0].content_hash])
    assert [images.step() for _ in range(4)] == [()] * 4
    assert tower.blocks == 1
    images.start([large])
    assert images.step(num_tokens=0) == (large.content_hash,)
    assert tower.passes == [[4096], [4096]]


def test_what_goes_wrong_behind_a_step_is_tried_again_by_who_reads_the_image() -> None:
    tower = Tower()
    images = encoder(tower)
    tower.is_broken = True
    images.start([IMAGES[0]])
    assert images.step() == (IMAGES[0].content_hash,), "nobody waits for it in vain"
    errors = images.encode([], [IMAGES[0]])
    assert {key: error.code for key, error in errors.items()} == {
        IMAGES[0].content_hash: "step_failed"
    }
    tower.is_broken = False
    assert images.encode([], [IMAGES[0]]) == {}
    assert images.part(IMAGES[0].content_hash, 0, 4).shape == (4, 64)
    images.drop([])
    assert images.encode([], [IMAGES[0]]) == {}
    assert len(tower.passes) == 3, "it was planned: it stays"
    images.drop([IMAGES[0].content_hash])
    assert images.encode([], [IMAGES[0]]) == {}
    assert len(tower.passes) == 4


def test_of_images_that_went_together_each_keeps_its_own_memory_alone() -> None:
    images = encoder(Tower(), max_patches=10**6)
    images.encode(IMAGES, IMAGES)
    own = images.part(IMAGES[0].content_hash, 0, IMAGES[0].num_tokens)
    assert own.untyped_storage().nbytes() == own.nbytes


def test_pixels_may_be_overwritten_once_an_image_has_started() -> None:
    span = image(4, 4, seed=9)
    expected = encoder(Tower())
    expected.encode([span], [span])
    images = encoder(Tower())
    images.start([span])
    ALBUM.arena.view(span.pixels)[:] = bytes(span.pixels.nbytes)
    assert images.encode([], [span]) == {}
    part = (span.content_hash, 0, span.num_tokens)
    assert torch.equal(images.part(*part), expected.part(*part))


@pytest.mark.parametrize(
    ("where", "num_patches", "num_tokens", "expected"),
    [
        ("cuda", 5376, 1, 6),
        ("cuda", 5376, 64, 12),
        ("cuda", 256, 1, 13),
        ("cuda", 24576, 1, 1),
        ("beside", 24576, 1, 13),
    ],
)
def test_slices_are_as_long_as_who_decodes_can_bear(
    where: str, num_patches: int, num_tokens: int, expected: int
) -> None:
    assert slice_blocks(num_patches, num_tokens, where) == expected
