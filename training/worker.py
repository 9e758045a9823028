"""A data worker: a process that draws and packs samples into shared memory, on request.

It owns some slots of one shared arena. The trainer asks for a micro-batch in a slot, the worker
writes it there and sends its `Counts`; the slot is the trainer's until the next request for it.
"""

import importlib
import mmap
import os
import signal
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch

from training.packing import Budget, Counts, Packed, Packer
from training.sample import Source

HELD_OUT_SEEDS = 1 << 60  # held-out seeds start here; seeds of training never come so far
STREAM_SEEDS = 1 << 40  # room of one stream of seeds
HELD_OUT_STREAMS = 8  # fixed, so that the held-out set does not depend on the number of workers


@dataclass(frozen=True, slots=True)
class Request:
    """Write a micro-batch to `slot`. `stream` None: of training, else of that held-out stream."""

    slot: int
    progress: float
    stream: int | None = None
    limit: int | None = None  # samples


@dataclass(frozen=True, slots=True)
class Reply:
    """The micro-batch is in its slot. `next_seed`: see `Packer`."""

    request: Request
    counts: Counts
    next_seed: int


@dataclass(frozen=True, slots=True)
class Failure:
    """The worker's source raised; the worker has ended."""

    traceback: str


class Arena:
    """Equal slots in anonymous shared memory; pickled to a child it is the same memory there."""

    def __init__(self, fd: int, num_slots: int, budget: Budget) -> None:
        self.budget = budget
        self.num_slots = num_slots
        self._fd = fd
        self._map = mmap.mmap(fd, num_slots * self.slot_bytes(budget))

    @classmethod
    def create(cls, num_slots: int, budget: Budget) -> "Arena":
        """A new arena. Its pages count as memory only once they are written."""
        fd = os.memfd_create("training-batches", os.MFD_CLOEXEC)
        os.ftruncate(fd, num_slots * cls.slot_bytes(budget))
        return cls(fd, num_slots, budget)

    @staticmethod
    def slot_bytes(budget: Budget) -> int:
        """Bytes of one slot: room for the largest micro-batch."""
        return 4 * budget.max_words + budget.max_pixels

    def write(self, slot: int, packed: Packed) -> None:
        """Words first, pixels behind them."""
        words, pixels = self._views(slot, len(packed.words), len(packed.pixels))
        words[:] = packed.words
        pixels[:] = packed.pixels

    def read(self, slot: int, counts: Counts) -> Packed:
        """What was written, without a copy: it changes with the next request for the slot."""
        return Packed(counts, *self._views(slot, sum(counts.word_sizes), counts.num_pixels))

    def _views(self, slot: int, num_words: int, num_pixels: int) -> tuple[Any, Any]:
        start = slot * self.slot_bytes(self.budget)
        words = np.frombuffer(self._map, np.int32, num_words, start)
        return words, np.frombuffer(self._map, np.uint8, num_pixels, start + words.nbytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (DupFd(self._fd), self.num_slots, self.budget)


def _attach(fd: Any, num_slots: int, budget: Budget) -> Arena:
    return Arena(fd.detach(), num_slots, budget)


def load_source(name: str) -> Source:
    """The source that "module:function" makes.

    Raises ImportError, AttributeError or ValueError if there is no such function.
    """
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"{name!r}: a source is named as module:function")
    source: Source = getattr(importlib.import_module(module), function)()
    return source


def held_out_packer(source: Source, stream: int, budget: Budget) -> Packer:
    """The packer of one of the HELD_OUT_STREAMS, at its start."""
    return Packer(source, HELD_OUT_SEEDS + stream * STREAM_SEEDS, budget, held_out=True)


def work(connection: Connection, arena: Arena, source_name: str, seed: int) -> None:
    """Main of a worker: requests in, micro-batches out, until the trainer is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle
    os.nice(5)  # on a full machine the trainer, which launches the device's work, comes first
    torch.set_num_threads(1)
    try:
        source = load_source(source_name)
        training = Packer(source, seed, arena.budget, held_out=False)
        held_out: dict[int, Packer] = {}
        while True:
            request: Request = connection.recv()
            packer = training
            if request.stream is not None:
                if request.stream not in held_out:
                    held_out[request.stream] = held_out_packer(source, request.stream, arena.budget)
                packer = held_out[request.stream]
            packed = packer.next(request.progress, request.limit)
            arena.write(request.slot, packed)
            connection.send(Reply(request, packed.counts, packer.next_seed))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the trainer ended
    except Exception:
        connection.send(Failure(traceback.format_exc()))
