"""How every child process begins: its line to the parent, what it was started as, and the word to
the parent if that cannot be.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import msgspec

from glimt import __version__
from glimt.errors import StartupError
from glimt.processes.control import (
    FirstMessage,
    Refused,
    ToChild,
)
from glimt.processes.control_line import ControlLine, child_line

Start = TypeVar("Start")


def begin(kind: type[Start], description: str | None) -> tuple[Start, ControlLine[ToChild]]:
    """(what the process shall be, its line to the parent), of one that `--control-fd` was given.

    `description`: for `--help`. Ends the process with status 1 where the parent is gone, and with
    2, after a word to the parent, where that is of another version of Glimt.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--control-fd", type=int, required=True)
    line = child_line(parser.parse_args().control_fd)
    data = line.receive_bytes()
    if not data:
        sys.exit(1)
    with refusing(line):
        return read_start(data, kind), line


def read_start(data: bytes, kind: type[Start]) -> Start:
    """What the first message says. Raises StartupError if another version of Glimt sent it."""
    try:
        message = msgspec.msgpack.decode(data, type=FirstMessage)
        if message.glimt == __version__:
            return msgspec.msgpack.decode(message.start, type=kind)
        parent = message.glimt or "an older version"
    except msgspec.DecodeError:
        parent = "another state of its code"
    raise StartupError(
        f"this process is of Glimt {__version__}, the running glimt serve that starts it of "
        f"{parent}: Glimt was installed anew below it; stop glimt serve and start it again"
    )


@contextlib.contextmanager
def refusing(
    line: ControlLine[ToChild], leave: Callable[[int], NoReturn] = sys.exit
) -> Iterator[None]:
    """A StartupError raised within is told to the parent (`Refused`), and ends the process with
    status 2, by `leave`.
    """
    try:
        yield
    except StartupError as error:
        line.send(Refused(str(error)))
        leave(2)
