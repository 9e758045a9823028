"""How every child process begins: its line to the parent, what it was started as, and the word to
the parent if that cannot be.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from glimt.errors import StartupError
from glimt.processes.control import (
    Refused,
    ToChild,
)
from glimt.processes.control_line import ControlLine, child_line

Start = TypeVar("Start")


def begin(kind: type[Start], description: str | None) -> tuple[Start, ControlLine[ToChild]]:
    """(the first message, the line that it came by), of a process that `--control-fd` was given.

    `description`: for `--help`. Ends the process with status 1 where the parent is gone, or the
    message is not of this kind.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--control-fd", type=int, required=True)
    line = child_line(parser.parse_args().control_fd)
    start = line.receive()
    if not isinstance(start, kind):
        sys.exit(1)
    return start, line


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
