"""`Release`: frees a GPU whose one-kernel sums wait for a rank that does not come.

What such a kernel waits for is a word in memory, which work on another stream can write, if

* it does not stand behind the kernel. Streams share a few channels to the device (8, unless
  CUDA_DEVICE_MAX_CONNECTIONS says otherwise), and what is in a channel waits for all that is before
  it, of whatever stream. So answers go over many streams, of both priorities;
* nothing must be loaded. CUDA loads a kernel when it is first launched, and may wait until the
  device is idle for that. So each stream has answered once before anybody waits;
* the host comes through. A launch into a full channel blocks, for ever behind such a kernel. So a
  stream gets an answer only when it has done with its last.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from glimt.errors import BadSettings

_NUM_LANES = 16
_LOOK_S = 0.001


class Lane(Protocol):
    """What carries answers to the device."""

    def is_free(self) -> bool:
        """Whether all that was sent is done."""

    def send(self, answer: Callable[[], None]) -> None:
        """Let the device do it, without waiting for it."""


class StreamLane:
    """A stream, and the event after its last answer."""

    def __init__(self, device: torch.device, priority: int) -> None:
        make_stream: Any = torch.cuda.Stream
        make_event: Any = torch.cuda.Event
        self._stream = make_stream(device, priority=priority)
        self._done = make_event()

    def is_free(self) -> bool:
        """Whether all that was sent is done."""
        return bool(self._done.query())

    def send(self, answer: Callable[[], None]) -> None:
        """Launch it on the stream."""
        with torch.cuda.stream(self._stream):
            answer()
        self._done.record(self._stream)


class Release:
    """Answers in place of the others. `pads`: of each buffer, the signals of each rank (int32)."""

    def __init__(
        self, pads: Sequence[Sequence[Tensor]], rank: int, lanes: Sequence[Lane], limit_s: float
    ) -> None:
        """Answers once on each lane, in memory of its own. Raises BadSettings after `limit_s`."""
        self._pads = pads
        self._rank = rank
        self._lanes = lanes
        self._limit_s = limit_s
        apart = [[torch.zeros_like(pad) for pad in of_ranks] for of_ranks in pads]
        for lane in lanes:
            lane.send(lambda: self._answer(apart))
        self.free(lambda: True)

    def free(self, has_ended: Callable[[], bool]) -> None:
        """Answer until the kernels have ended, and wait for what is still under way: their memory
        may be freed afterwards. Raises BadSettings after the limit.
        """
        deadline_s = time.monotonic() + self._limit_s
        while True:
            ended = has_ended()
            free = [lane for lane in self._lanes if lane.is_free()]
            if ended and len(free) == len(self._lanes):
                return
            if time.monotonic() > deadline_s:
                raise BadSettings(
                    "a sum in one kernel never ends on this GPU: --disable-custom-all-reduce "
                    "leaves all sums to NCCL"
                )
            for lane in [] if ended else free:
                lane.send(lambda: self._answer(self._pads))
            time.sleep(_LOOK_S)

    def _answer(self, pads: Sequence[Sequence[Tensor]]) -> None:
        for of_ranks in pads:
            answer_for_others(of_ranks, self._rank)


def stream_lanes(device: torch.device) -> list[Lane]:
    """Streams of a GPU, every other one of high priority."""
    return [StreamLane(device, -(number % 2)) for number in range(_NUM_LANES)]


def answer_for_others(pads: Sequence[Tensor], rank: int) -> None:
    """What a kernel of this rank waits for, done in place of the others once.

    Each block of the kernel has a signal for each rank (itself as well) in the pad of each. It
    sets its own signal in all pads, as soon as that is 0 there, and takes back, once they are 1,
    all that are in its own pad. The signal that it gives itself it must be left alone with: set by
    somebody else, the block would wait for ever to set it.
    """
    size = len(pads)
    for peer in set(range(size)) - {rank}:
        pads[rank][peer::size].fill_(1)
        pads[peer][rank::size].fill_(0)
