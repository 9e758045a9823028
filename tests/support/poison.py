"""Memory that was never written shows: what operations allocate is full of NaN."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def poisoned(tensor: Tensor) -> Tensor:
    """The tensor, every byte 255: NaN in each float type, -1 in integers."""
    if tensor.dim() and tensor.is_contiguous():  # others cannot be seen as bytes
        tensor.view(torch.uint8).fill_(255)
    return tensor


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Within, `new_empty`, `empty_like` and `torch.empty` give NaN."""
    kept = (torch.Tensor.new_empty, torch.empty_like, torch.empty)

    def wrap(make: Any) -> Any:
        return lambda *args, **named: poisoned(make(*args, **named))

    torch.Tensor.new_empty, torch.empty_like, torch.empty = map(wrap, kept)  # type: ignore
    try:
        yield
    finally:
        torch.Tensor.new_empty, torch.empty_like, torch.empty = kept  # type: ignore
