"""Main of what runs in a place that Ray has found: `glimt serve`, told by standard input."""

import os
import sys

from glimt.errors import StartupError
from glimt.placement.orders import decode
from glimt.processes.children import end_with_parent
from glimt.processes.launch import serve


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main() -> None:
    """Entry point of `python -m glimt.placement.worker`."""
    end_with_parent()
    settings = decode(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        sys.exit(serve(settings, _say))
    except StartupError as error:
        _say(f"glimt: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
