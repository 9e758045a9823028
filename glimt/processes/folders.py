"""Private folders for sockets, which say whose they are, so that none outlives a killed owner."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "glimt-"


def make_folder() -> Path:
    """A new folder (0700) of this process."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    (folder / "pid").write_text(f"{os.getpid()} {process_start(os.getpid())}")
    return folder


def remove_stale_folders() -> None:
    """Remove folders of processes that were killed (nobody listens in them any more)."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            owner = folder / "pid"
            if folder.stat().st_uid != os.getuid() or not owner.exists():
                continue
            pid, started = owner.read_text().split()
            if process_start(int(pid)) != started:
                shutil.rmtree(folder, ignore_errors=True)


def process_start(pid: int) -> str | None:
    """When process `pid` started, in the kernel's ticks; None = there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]
