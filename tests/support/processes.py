"""Finds processes by the module that they run."""

from collections.abc import Iterable, Iterator

import psutil


def processes_running(
    module: str, among: Iterable[psutil.Process] | None = None
) -> Iterator[psutil.Process]:
    """Of these processes (None: the children of this one) those that run glimt.<module>; not what
    has ended meanwhile.
    """
    for process in psutil.Process().children() if among is None else among:
        try:
            if f"glimt.{module}" in process.cmdline():
                yield process
        except psutil.NoSuchProcess:
            continue
