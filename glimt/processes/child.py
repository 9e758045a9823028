"""What every child process begins with: its line to the parent, and what it was started as."""

import argparse
import sys
from typing import TypeVar

from glimt.processes.control import (
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
