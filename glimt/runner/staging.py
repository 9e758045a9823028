"""Small arrays between host and device without waiting: one pinned buffer and one copy each way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]

_ALIGNMENT = 16  # bytes; a view of any of our types may start there


def to_device(arrays: Mapping[str, Array], device: torch.device) -> dict[str, Tensor]:
    """The arrays as tensors on `device`, by name. On a CPU they share the arrays' memory.

    The pinned buffer comes from torch's caching host allocator, which does not give it out again
    before the copy is done: the caller needs no ring of buffers and no event.
    """
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    offsets, total = _layout(arrays)
    pinned = torch.empty(total, dtype=torch.uint8, pin_memory=True)
    _write(pinned.numpy(), offsets, arrays)
    packed = pinned.to(device, non_blocking=True)
    return {name: _view(packed, offsets[name], array) for name, array in arrays.items()}


class FixedTensors:
    """Tensors that keep their places on the device while what they hold changes, by one copy."""

    def __init__(self, arrays: Mapping[str, Array], device: torch.device) -> None:
        """`arrays` give names, types and shapes, and what the tensors hold at first."""
        self._offsets, total = _layout(arrays)
        self._packed = torch.zeros(total, dtype=torch.uint8, device=device)
        self.tensors = {
            name: _view(self._packed, self._offsets[name], array) for name, array in arrays.items()
        }
        self.fill(arrays)

    def fill(self, arrays: Mapping[str, Array]) -> None:
        """Replace all that the tensors hold, after what the device was given to do before."""
        is_pinned = self._packed.device.type == "cuda"
        host = torch.empty(self._packed.shape, dtype=torch.uint8, pin_memory=is_pinned)
        _write(host.numpy(), self._offsets, arrays)
        self._packed.copy_(host, non_blocking=True)


def pin(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` of the host on `device`, through pinned memory if that needs a copy."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class ReturnedTensors:
    """Tensors on their way to the host; `sources` stay alive until they have been read."""

    host: tuple[Tensor, ...]
    sources: tuple[Tensor, ...]
    done: torch.cuda.Event | None

    @property
    def is_there(self) -> bool:
        """`wait` would not have to."""
        return self.done is None or bool(self.done.query())  # type: ignore[no-untyped-call]

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors on the host. Raises what the device raised."""
        if self.done is not None:
            self.done.synchronize()
        return self.host


class ReturnPath:
    """Copies results to the host on a stream of its own, beside the next step's kernels."""

    def __init__(self, device: torch.device) -> None:
        self._stream = (
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if device.type == "cuda"
            else None
        )

    def send(self, tensors: Sequence[Tensor]) -> ReturnedTensors:
        """Start copying what the current stream computes; does not wait."""
        sources = tuple(tensors)
        if self._stream is None:
            return ReturnedTensors(host=sources, sources=sources, done=None)
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            host = tuple(_copy_to_pinned(tensor) for tensor in sources)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        return ReturnedTensors(host=host, sources=sources, done=done)


def _copy_to_pinned(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _layout(arrays: Mapping[str, Array]) -> tuple[dict[str, int], int]:
    """Byte offset of each array in the packed buffer, and the buffer's size."""
    offsets: dict[str, int] = {}
    total = 0
    for name, array in arrays.items():
        offsets[name] = total
        total += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, total


def _write(host: Array, offsets: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        place = host[offsets[name] : offsets[name] + array.nbytes]
        place.view(array.dtype).reshape(array.shape)[...] = array


def _view(packed: Tensor, offset: int, array: Array) -> Tensor:
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    return packed[offset : offset + array.nbytes].view(dtype).view(array.shape)
