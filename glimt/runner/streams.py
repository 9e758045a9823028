"""`Streams`: where the kernels of steps and of the vision tower go, and how one waits for another.

On a stream of its own the tower computes beside the steps, whose kernels go first wherever both
have something to start: theirs is the stream of higher priority, and so is the one that graphs are
recorded on, from which their kernels take it. Memory of a stream goes back to that stream;
embeddings are read by steps as well, so the allocator is told to wait for those, too.

Where the tower has no stream of its own, it computes between steps, and there is nothing to wait
for. So it is on a CPU, and so it is over several ranks: both streams would carry exchanges, which
must come in one order on all ranks.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from glimt.errors import Unsupported

try:
    from torch.cuda.green_contexts import GreenContext
except ImportError:  # a torch before them
    GreenContext = None  # type: ignore[assignment, misc]

# Decision 0031 has the numbers; a whole server has not been measured with it.
OWN_STREAM = False

# With it, how many of the GPU's multiprocessors the tower may use, so that steps find some free;
# 0: all of them.
TOWER_SMS = 0

_PRIORITY = {"steps": -1, "tower": 0}  # the lower number goes first


class Streams:
    """Of one device. `own`: the tower has one of its own, if the device is a GPU."""

    def __init__(self, device: torch.device, *, own: bool = False) -> None:
        self._device = device
        self._context: Any = None  # it must live as long as its stream
        self._steps: torch.cuda.Stream | None = None
        self._tower: torch.cuda.Stream | None = None
        if own and device.type == "cuda":
            self._steps = new_stream(device, "steps")
            self._tower = self._make_tower()

    def follow_current(self) -> None:
        """Both wait for what was launched so far: weights and tables are made before steps."""
        for stream in (self._steps, self._tower):
            if stream is not None:
                stream.wait_stream(torch.cuda.current_stream(self._device))

    @property
    def are_two(self) -> bool:
        """The tower computes beside steps."""
        return self._tower is not None

    @contextmanager
    def of_steps(self) -> Iterator[None]:
        """What is launched within is part of a step."""
        if self._steps is None:
            yield
            return
        with torch.cuda.stream(self._steps):
            yield

    @contextmanager
    def of_tower(self) -> Iterator[None]:
        """What is launched within is part of a pass of the tower."""
        if self._tower is None:
            yield
            return
        with torch.cuda.stream(self._tower):
            yield

    def mark(self) -> torch.cuda.Event | None:
        """An event behind all that the tower was given; None if the order of launches says it."""
        if self._tower is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._tower)
        return event

    def join(self, event: torch.cuda.Event, embeddings: Sequence[Tensor]) -> None:
        """Let steps read these of the tower's tensors: on the device they wait for `event`."""
        steps = self._steps or torch.cuda.current_stream(self._device)
        steps.wait_event(event)
        for embedding in embeddings:
            embedding.record_stream(steps)

    def _make_tower(self) -> torch.cuda.Stream:
        if not TOWER_SMS:
            return new_stream(self._device, "tower")
        self._context = GreenContext.create(num_sms=TOWER_SMS, device_id=self._device.index or 0)
        if not hasattr(self._context, "Stream"):
            raise Unsupported(
                "this torch makes no streams of a part of the GPU: set TOWER_SMS to 0"
            )
        stream: torch.cuda.Stream = self._context.Stream()
        return stream


@functools.cache  # libraries keep a workspace for each stream that there ever was
def two_streams(device: torch.device) -> Streams:
    """Those of all executors of a device."""
    return Streams(device, own=True)


def new_stream(device: torch.device | None, kind: str) -> torch.cuda.Stream:
    """Of the priority of "steps" or of the "tower"."""
    return torch.cuda.Stream(device, priority=_PRIORITY[kind])  # type: ignore[no-untyped-call]
