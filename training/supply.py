"""`Supply`: what a step trains on, from a feed to the device and into replay."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.batches import Arrival, Feed
from training.network import Batch
from training.packing import Packed
from training.replay import Replay


@dataclass(slots=True)
class Tally:
    """What went through since it was last looked at."""

    fresh: int = 0  # micro-batches
    used: int = 0
    samples: int = 0
    tokens: int = 0
    patches: int = 0
    fresh_samples: int = 0
    wait_s: float = 0.0


class Supply:
    """Fresh micro-batches as they come, filled up with ones that were used before."""

    def __init__(
        self, feed: Feed, replay: Replay[Batch], device: torch.device, num_held_out: int
    ) -> None:
        self.feed = feed
        self.held_out: list[Batch] = []
        self.tally = Tally()
        self._replay = replay
        self._device = device
        self._num_held_out = num_held_out

    def draw(self, count: int, progress: float) -> Sequence[Batch]:
        """`count` different micro-batches; waits only if so many are not there."""
        started = time.perf_counter()
        while self._replay.num_fresh < count:
            short = len(self._replay) < count
            arrival = self.feed.take(progress, block=short)
            if arrival is None:
                break
            self._add(arrival)
        batches, num_fresh = self._replay.draw(count)
        self._note(batches, num_fresh)
        self.tally.wait_s += time.perf_counter() - started
        return batches

    def collect_held_out(self, progress: float) -> list[Batch]:
        """The whole held-out set; waits until it is there."""
        while sum(batch.counts.samples for batch in self.held_out) < self._num_held_out:
            arrival = self.feed.take(progress, block=True)
            if arrival is not None:
                self._add(arrival)
        return self.held_out

    def _add(self, arrival: Arrival) -> None:
        batch = to_device(arrival.packed, self._device)
        if arrival.held_out:
            self.held_out.append(batch)
        else:
            self._replay.add(batch)

    def _note(self, batches: Sequence[Batch], num_fresh: int) -> None:
        tally = self.tally
        tally.fresh += num_fresh
        tally.used += len(batches)
        tally.fresh_samples += sum(batch.counts.samples for batch in batches[:num_fresh])
        for batch in batches:
            tally.samples += batch.counts.samples
            tally.tokens += batch.counts.tokens
            tally.patches += batch.counts.patches


def to_device(packed: Packed, device: torch.device) -> Batch:
    """A copy on the device; the packed arrays may change afterwards."""
    words, pixels = torch.from_numpy(packed.words), torch.from_numpy(packed.pixels)
    if device.type == "cuda":
        words, pixels = words.pin_memory(), pixels.pin_memory()
        return Batch(
            packed.counts,
            words.to(device, non_blocking=True),
            pixels.to(device, non_blocking=True),
        )
    return Batch(packed.counts, words.clone(), pixels.clone())
