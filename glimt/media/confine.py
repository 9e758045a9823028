"""What a media worker may not do, enforced by the kernel: it feeds strangers' bytes to C code."""

import contextlib
import os
import resource
import stat
import sys
from pathlib import Path

# Decoded pictures, the decoder's own, and the copies of one resize.
MAX_MEMORY_BYTES = 4 * 2**30


def confine() -> None:
    """Bound this process: memory beyond what it has mapped by now, files, core dumps.

    Call it when everything is imported and mapped. It is also the first to go when the machine
    runs out of memory: a lost worker costs one request, a lost engine all of them.
    """
    _lower(resource.RLIMIT_AS, _mapped_bytes() + MAX_MEMORY_BYTES)
    _lower(resource.RLIMIT_CORE, 0)
    if not _logs_to_file():
        _lower(resource.RLIMIT_FSIZE, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900", "ascii")


def allow_cpu_seconds(seconds: float) -> None:
    """From now on, so much CPU time; then the kernel ends the process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or value < hard:
        resource.setrlimit(kind, (value, value))


def _mapped_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    return pages * resource.getpagesize()


def _logs_to_file() -> bool:
    """A limit of zero would silence a log that goes to a regular file."""
    try:
        return stat.S_ISREG(os.fstat(sys.stderr.fileno()).st_mode)
    except (OSError, ValueError):
        return False
