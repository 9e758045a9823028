"""What ranks do before they rely on each other's memory: try it, within a time, and agree.

A rank that finds a fault must not leave the others waiting for it in the middle: each does its part
of a trial to the end, and what was found is told over gloo, which needs nothing that is tried.
"""

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import AllreduceOptions, ReduceOp

_LOOK_S = 0.001


def all_agree(host: Any, size: int, agrees: bool) -> bool:
    """Whether it is true on every rank of the gloo group `host`."""
    count = torch.tensor([int(agrees)])
    host.allreduce([count]).wait()
    return count.item() == size


def all_same(host: Any, tensors: Sequence[Tensor]) -> bool:
    """Whether every rank of the gloo group `host` has the same bits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    number = int.from_bytes(digest.digest()[:7], "big")
    least_and_most = torch.tensor([number, -number])
    options: Any = AllreduceOptions()
    options.reduceOp = ReduceOp.MIN
    host.allreduce([least_and_most], options).wait()
    least, most = least_and_most.tolist()
    return bool(least == -most)


def record_event() -> Any:
    """One that has come when the current stream has done what it was told so far."""
    make: Any = torch.cuda.Event
    event = make()
    event.record()
    return event


def wait_for_device(limit_s: float) -> None:
    """Until the current stream has done all that it was told. Raises TimeoutError."""
    done = record_event()
    deadline_s = time.monotonic() + limit_s
    while not done.query():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the GPU was not done with it within {limit_s:.0f} s")
        time.sleep(_LOOK_S)
