"""Runs the vision tower and keeps embeddings by image, as long as plans say.

    start ──▶ staged ──(a pass is formed)──▶ in a pass ──(its last slice)──▶ embedded ──▶ drop

An image that a step reads is made whole before it (`finish`). Others are encoded in slices behind
steps (`launch_slices`), in the order in which they came; images that wait for the tower at the same
time go through it together.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glimt.errors import StepFailed
from glimt.models.vision import Slices
from glimt.parallel.mesh import Mesh
from glimt.runner.dealt_images import VisionTower, encode_dealt
from glimt.runner.pixels import PixelReader
from glimt.runner.streams import Streams
from glimt.runner.tower_costs import TowerCosts
from glimt.runner.tower_pass import TowerPass, slice_blocks
from glimt.wire import ErrorInfo, ImageSpan

log = logging.getLogger(__name__)

_UNREADABLE = ErrorInfo(StepFailed.code, "The pixels of an image could not be read.")
_NOT_ENCODED = ErrorInfo(StepFailed.code, "An image could not be encoded.")


@dataclass(frozen=True, slots=True)
class _Staged:
    """An image whose turn has not come."""

    span: ImageSpan
    patches: Tensor  # on the host

    @property
    def num_patches(self) -> int:
        return self.patches.shape[0]


@dataclass(slots=True)
class _Embedding:
    """What an image became; `event` until steps have been told to wait for it."""

    rows_TD: Tensor
    event: torch.cuda.Event | None


class ImageEncoder:
    """Embeddings by `ImageSpan.content_hash`.

    Images are packed into passes of at most `max_patches` patches (one image alone may have more),
    which bounds the tower's activation memory. Where every rank of `mesh` has the whole tower, the
    images of a pass are dealt out to the ranks, and spread over all of them where that is faster by
    `costs`; then it has so many times the patches.
    """

    def __init__(
        self,
        tower: VisionTower,
        reader: PixelReader,
        *,
        max_patches: int,
        device: torch.device,
        mesh: Mesh | None = None,
        costs: TowerCosts | None = None,
        streams: Streams | None = None,
    ) -> None:
        self._tower = tower
        self._reader = reader
        self._costs = costs
        self._mesh = mesh or Mesh.single()
        self._deals = self._mesh.tp_size > 1 and not self._mesh.splits_tower
        self._max_patches = max_patches
        self._device = device
        self._streams = streams or Streams(device)
        self._staged: dict[bytes, _Staged] = {}
        self._passes: list[TowerPass] = []  # in the order in which they are launched
        self._pass_of: dict[bytes, TowerPass] = {}
        self._embeddings: dict[bytes, _Embedding] = {}
        self._unplanned: set[bytes] = set()  # nobody accounts for them: they stay for one step
        self._failed: set[bytes] = set()  # planned: the step that reads them makes them, to stay
        self._unreported: dict[bytes, torch.cuda.Event | None] = {}  # who waits for them may go on

    def drop(self, keys: Iterable[bytes]) -> None:
        """Give images up, wherever they are. Kernels already launched still read theirs: the memory
        is used again on their stream, or after it has gone so far.
        """
        for key in (*keys, *self._unplanned):
            self._embeddings.pop(key, None)
            self._staged.pop(key, None)
            self._unreported.pop(key, None)
            self._failed.discard(key)
            done = self._pass_of.pop(key, None)
            if done is not None and done not in self._pass_of.values():
                self._passes.remove(done)
                done.cancel()
        self._unplanned.clear()

    def start(self, planned: Iterable[ImageSpan]) -> None:
        """Take the pixels of images, which stay until they are dropped."""
        for span in planned:
            key = span.content_hash
            if key in self._staged or key in self._pass_of:
                continue
            if key not in self._embeddings:
                patches = self._reader.read([span])
                if patches is not None:
                    self._staged[key] = _Staged(span, patches)
                    continue
                self._failed.add(key)
            self._unreported[key] = None

    def finish(self, used: Iterable[ImageSpan]) -> dict[bytes, ErrorInfo]:
        """Launch all that is missing of images that the next step reads, and have it wait for them;
        gives the errors of those that cannot be read or encoded.

        Images that are not even started (an earlier step failed, say) are made as well, so one
        failure does not follow an image around; those that no plan accounts for stay until the
        next `drop`.
        """
        spans_of: dict[bytes, list[ImageSpan]] = {}
        for span in used:
            spans_of.setdefault(span.content_hash, []).append(span)
        errors: dict[bytes, ErrorInfo] = {}
        for key, spans in spans_of.items():
            if key in self._embeddings or key in self._staged or key in self._pass_of:
                continue
            patches = self._reader.read(spans)
            if patches is None:
                errors[key] = _UNREADABLE
            else:
                self._staged[key] = _Staged(spans[0], patches)
                if key in self._failed:
                    self._failed.remove(key)
                else:
                    self._unplanned.add(key)
        self._complete([key for key in spans_of if key not in errors])
        for key in spans_of.keys() - errors.keys():
            if key in self._embeddings:
                self._join(self._embeddings[key])
            else:
                errors[key] = _NOT_ENCODED
        return errors

    def launch_slices(self, num_tokens: int) -> None:
        """Launch the next slice behind a step of so many tokens, and one more for each further pass
        that waits, so that many images wait no longer than one; behind no tokens, all slices.
        """
        num_slices = self._num_passes()
        while (self._passes or self._staged) and (num_slices > 0 or not num_tokens):
            if not self._passes:
                self._form_pass(list(self._staged))
            with self._streams.of_tower():
                tower_pass = self._passes[0]
                self._advance_or_log(tower_pass, self._num_blocks(tower_pass, num_tokens))
            num_slices -= 1

    def encoded(self) -> tuple[bytes, ...]:
        """Planned images that no step has to wait for any more, and such as cannot be encoded; each
        is told once. Does not wait for the device.
        """
        ready = [key for key, event in self._unreported.items() if event is None or event.query()]  # type: ignore[no-untyped-call]
        for key in ready:
            del self._unreported[key]
        return tuple(ready)

    def part(self, key: bytes, low: int, high: int) -> Tensor:
        """Rows [low, high) of the embeddings [num_tokens, D] of an image that is finished."""
        return self._embeddings[key].rows_TD[low:high]

    @property
    def _pass_limit(self) -> int:
        """Patches of a pass of several images, over all ranks."""
        return self._max_patches * (self._mesh.tp_size if self._deals else 1)

    def _num_passes(self) -> int:
        """Passes that are under way or to be formed."""
        count, room = len(self._passes), 0
        for image in self._staged.values():
            if image.num_patches > room:
                count, room = count + 1, self._pass_limit
            room -= image.num_patches
        return count

    def _join(self, embedding: _Embedding) -> None:
        if embedding.event is not None:
            self._streams.join(embedding.event, [embedding.rows_TD])
            embedding.event = None

    def _complete(self, keys: Iterable[bytes]) -> None:
        """Launch all of the passes that these images are in, and of no others."""
        missing = [key for key in keys if key not in self._embeddings]
        staged = [key for key in missing if key in self._staged]
        while staged:
            staged = self._form_pass(staged)
        with self._streams.of_tower():
            for tower_pass in dict.fromkeys(self._pass_of[key] for key in missing):
                self._advance_or_log(tower_pass, None)

    def _form_pass(self, keys: list[bytes]) -> list[bytes]:
        """A pass of the first of these staged images; gives those that are left."""
        count, num_patches = 0, 0
        while count < len(keys):
            num_patches += self._staged[keys[count]].num_patches
            if count and num_patches > self._pass_limit:
                break
            count += 1
        group = [self._staged.pop(key) for key in keys[:count]]
        tower_pass = TowerPass([image.span for image in group], self._slices(group))
        self._passes.append(tower_pass)
        self._pass_of.update(dict.fromkeys(tower_pass.keys, tower_pass))
        return keys[count:]

    def _slices(self, group: Sequence[_Staged]) -> Slices:
        """The pass over these; nothing is done before its first slice."""
        patches = [image.patches.to(self._device, non_blocking=True) for image in group]
        grids = [(image.span.grid_h, image.span.grid_w) for image in group]
        if not self._deals:
            return (yield from self._tower.encode_in_slices(patches, grids))
        return (
            yield from encode_dealt(
                self._tower,
                patches,
                grids,
                [image.span.num_tokens for image in group],
                mesh=self._mesh,
                costs=self._costs,
                max_patches=self._max_patches,
            )
        )

    def _num_blocks(self, tower_pass: TowerPass, num_tokens: int) -> int | None:
        """Blocks of a slice behind a step of so many tokens; None: all that are left."""
        if not num_tokens:
            return None
        kind = "beside" if self._streams.are_two else self._device.type
        return slice_blocks(tower_pass.num_patches, num_tokens, kind)

    def _advance_or_log(self, tower_pass: TowerPass, num_blocks: int | None) -> None:
        """`_advance`. What goes wrong concerns those who wait for the images, and no step beside
        it; where ranks may have parted, it is raised.
        """
        try:
            self._advance(tower_pass, num_blocks)
        except Exception:
            if self._mesh.tp_size > 1:
                raise
            log.exception("a pass of the vision tower failed")

    def _advance(self, tower_pass: TowerPass, num_blocks: int | None) -> None:
        """Raises what the tower raises; the pass is gone then, its images can be tried again."""
        try:
            embeddings = tower_pass.advance(num_blocks)
        except Exception:
            self._passes.remove(tower_pass)
            for key in self._take_keys(tower_pass):
                self._unreported[key] = None
                if key not in self._unplanned:
                    self._failed.add(key)
            raise
        if embeddings is not None:
            self._passes.remove(tower_pass)
            self._keep(tower_pass, embeddings)

    def _take_keys(self, tower_pass: TowerPass) -> list[bytes]:
        """The images of a pass that somebody still wants."""
        keys = [key for key in tower_pass.keys if self._pass_of.get(key) is tower_pass]
        for key in keys:
            del self._pass_of[key]
        return keys

    def _keep(self, tower_pass: TowerPass, embeddings: list[Tensor]) -> None:
        """Take over what a pass gave at its end."""
        if len(embeddings) > 1:  # of one tensor, which would stay as long as any of them
            embeddings = [rows_TD.clone() for rows_TD in embeddings]
        event = self._streams.mark()
        by_key = dict(zip(tower_pass.keys, embeddings, strict=True))
        for key in self._take_keys(tower_pass):
            self._embeddings[key] = _Embedding(by_key[key], event)
            self._unreported[key] = event
