"""Files in slices of a few MB, several at a time: no size in a file decides the memory needed."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glimt.errors import BadCheckpoint
from glimt.quantization.layout import OutputTensor, ShardPlan

# Fits a core's caches even as float32; larger slices are several times slower.
SLICE_BYTES = 2 << 20
DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
}


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows [start, stop) of one tensor."""

    tensor: OutputTensor
    start: int
    stop: int

    @property
    def source_bytes(self) -> int:
        """Bytes of the source that it covers."""
        return (self.stop - self.start) * self.tensor.stored_row_bytes


def slices_of(shard: ShardPlan) -> Iterator[Slice]:
    """All rows of all tensors of a file, in the order of the source's bytes."""
    for tensor in shard.tensors:
        step = max(1, SLICE_BYTES // max(1, tensor.stored_row_bytes))
        for start in range(0, tensor.num_rows, step):
            yield Slice(tensor, start, min(start + step, tensor.num_rows))


class DataFile:
    """The data of one safetensors file, read by several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._start = 8 + int.from_bytes(os.pread(self._descriptor, 8, 0), "little")

    def read(self, offset: int, num_bytes: int) -> bytearray:
        """Bytes at `offset` of the data. Raises BadCheckpoint if the file ends before."""
        content = bytearray(num_bytes)
        view, done = memoryview(content), 0
        while done < num_bytes:
            count = os.preadv(self._descriptor, [view[done:]], self._start + offset + done)
            if count == 0:
                raise BadCheckpoint(f"{self.path} became shorter while it was read")
            done += count
        return content

    def rows(self, offset: int, num_rows: int, row_bytes: int, dtype: str) -> Tensor:
        """[num_rows, row_bytes / item] of a matrix's rows at `offset` of the data."""
        content = self.read(offset, num_rows * row_bytes)
        return torch.frombuffer(content, dtype=DTYPES[dtype]).view(num_rows, -1)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._descriptor)

    def __enter__(self) -> "DataFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def for_each(
    slices: Iterable[Slice], work: Callable[[Slice], None], advance: Callable[[int], object]
) -> None:
    """Do `work` on all slices, on as many threads as there are cores; the first error is raised.

    `advance` is told the source's bytes that are done. Torch's own threads are held at one
    meanwhile: for slices this small they cost more than they give.
    """
    threads = max(1, min(8, len(os.sched_getaffinity(0))))
    waiting, lock, stop = iter(slices), threading.Lock(), threading.Event()

    def run() -> None:
        try:
            while not stop.is_set():
                with lock:
                    piece = next(waiting, None)
                if piece is None:
                    return
                work(piece)
                with lock:
                    advance(piece.source_bytes)
        except BaseException:
            stop.set()
            raise

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="quantize") as pool:
            futures = [pool.submit(run) for _ in range(threads)]
            try:
                for future in futures:
                    future.result()
            finally:  # also when a signal ends the wait
                stop.set()
    finally:
        torch.set_num_threads(before)
