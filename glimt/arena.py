"""Anonymous shared memory for pixels: one memfd per server process, mapped by all that read it.

The supervisor creates the memfds and passes the descriptors to its children, so nothing has a
name, nothing is left behind after SIGKILL, and no other user can attach. Who owns which range is
the business of the server that allocates (`frontend/arena_pool.py`); here are only bytes.
"""

import contextlib
import mmap
import os

from glimt.wire import PixelRef


class SharedArena:
    """A mapped range of anonymous memory. Pages are touched, and so counted, on first write."""

    def __init__(self, fd: int, index: int) -> None:
        self.fd = fd
        self.index = index
        self.nbytes = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, self.nbytes)

    @classmethod
    def create(cls, nbytes: int, index: int) -> "SharedArena":
        """A new arena of `nbytes`. Raises OSError if the kernel refuses the size."""
        fd = anonymous_file(f"glimt-arena-{index}")
        os.ftruncate(fd, nbytes)
        return cls(fd, index)

    def view(self, ref: PixelRef) -> memoryview:
        """The bytes of `ref`, writable, without a copy. Raises ValueError outside the arena."""
        if ref.arena != self.index or ref.offset < 0 or ref.nbytes < 0:
            raise ValueError(f"{ref} does not belong to arena {self.index}")
        if ref.offset + ref.nbytes > self.nbytes:
            raise ValueError(f"{ref} ends beyond the {self.nbytes} bytes of the arena")
        return memoryview(self._map)[ref.offset : ref.offset + ref.nbytes]

    def close(self) -> None:
        """Unmap and close; the memory is freed when the last process has done so."""
        with contextlib.suppress(BufferError):  # a view is still alive: the mapping goes with it
            self._map.close()
        os.close(self.fd)


def anonymous_file(name: str) -> int:
    """The descriptor of a file in memory, empty, that no folder shows; `name` is for people."""
    return os.memfd_create(name, os.MFD_CLOEXEC)
