"""A `glimt serve` for a benchmark: started, ready, ended with it; what it says goes to a file."""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

READY = re.compile(r"ready after [\d.]+ s: (http://[^/]+)/v1  serving (\S+)")


@contextlib.contextmanager
def served(
    model: str, *arguments: str, log: Path, before: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """(address, model name) of a server on a free port; `before` stands before its command."""
    command = [*before, sys.executable, "-m", "glimt", "serve", model, "--port", "0", *arguments]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdin=subprocess.DEVNULL)
    try:
        while (found := READY.search(log.read_text("utf-8", "replace"))) is None:
            if process.poll() is not None:
                raise SystemExit(f"the server ended before it was ready; see {log}")
            time.sleep(0.1)
        yield found[1], found[2]
    finally:
        process.terminate()
        process.wait(60)
