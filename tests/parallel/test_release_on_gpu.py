"""A GPU whose kernels wait for signals of nobody is freed, whatever stream they are on."""

import time
from typing import Any

import pytest
import torch

from glimt.parallel.release import Release, stream_lanes
from glimt.parallel.trial import record_event

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

BLOCKS, SYNCS, KERNELS = 24, 8, 20
PATIENCE = 20_000_000  # looks: some ten seconds, after which the kernel gives up
SIGNALS = 512


@triton.jit(do_not_specialize=["syncs", "patience"])
def wait_kernel(own_ptr, theirs_ptr, done_ptr, syncs, patience):  # type: ignore[no-untyped-def]
    """Rank 0 of two: sets its signal in the other's pad, takes the other's from its own."""
    block = tl.program_id(0)
    put, take = theirs_ptr + 2 * block, own_ptr + 2 * block + 1
    done = 0
    for _ in range(syncs):
        old = tl.atomic_cas(put, 0, 1, sem="relaxed", scope="sys")
        while (old != 0) & (patience > 0):
            old = tl.atomic_cas(put, 0, 1, sem="relaxed", scope="sys")
            patience -= 1
        old = tl.atomic_cas(take, 1, 0, sem="relaxed", scope="sys")
        while (old != 1) & (patience > 0):
            old = tl.atomic_cas(take, 1, 0, sem="relaxed", scope="sys")
            patience -= 1
        done += (patience > 0).to(tl.int32)
    tl.atomic_add(done_ptr, done)


def test_kernels_on_any_stream_are_freed() -> None:
    """On more streams than there are channels, so some of the answers' stand behind the kernels."""
    device = torch.device("cuda")
    pads = [torch.zeros(SIGNALS, dtype=torch.int32, device=device) for _ in range(2)]
    apart = [torch.zeros_like(pads[0]) for _ in range(2)]
    done = torch.zeros(1, dtype=torch.int32, device=device)
    grid: Any = (BLOCKS,)
    wait_kernel[grid](*apart, done, 0, 1)  # load it
    release = Release([pads], 0, stream_lanes(device), 5.0)
    make_stream: Any = torch.cuda.Stream
    streams = [torch.cuda.current_stream(), *(make_stream() for _ in range(40))]
    for stream in streams:
        for pad in pads:
            pad.zero_()
        done.zero_()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(KERNELS):
                wait_kernel[grid](*pads, done, SYNCS, PATIENCE)
            has_ended = record_event().query
        time.sleep(0.01)
        assert not has_ended()
        release.free(has_ended)
        assert int(done) == KERNELS * BLOCKS * SYNCS
