"""The two servers: one of scripted times, and `glimt serve`, which forgets what it has seen."""

import contextlib
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving import served

_CACHES = ("prefix", "encoder", "mm")


@dataclass(frozen=True)
class Target:
    """A server that runs; `forget` empties its caches, so that no run helps the next."""

    url: str
    model: str
    forget: Callable[[], None]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def arguments(self, tokenizer: Path) -> list[str]:
        """The options of `bench serve` that lead to it."""
        where = ["--base-url", self.url, "--model", self.model]
        return [*where, "--tokenizer", str(tokenizer)]


@contextlib.contextmanager
def scripted(before: Sequence[str]) -> Iterator[Target]:
    """`mock_server.py`: the first token after 100 ms, then one every 10 ms."""
    script = Path(__file__).resolve().parents[1] / "mock_server.py"
    command = [*before, sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip() if process.stdout else ""
            yield Target(url, "mock-model", lambda: None)
        finally:
            process.terminate()


@contextlib.contextmanager
def model(folder: str, before: Sequence[str], log: Path) -> Iterator[Target]:
    """`glimt serve` of a checkpoint, one process for all runs: two that are started alike are not
    equally fast, which would count as a difference of the clients."""
    key = secrets.token_hex(16)
    wishes = ("--served-model-name", "model", "--admin-key", key)
    with served(folder, *wishes, log=log, before=before) as (url, name):

        def forget() -> None:
            for cache in _CACHES:
                request = urllib.request.Request(f"{url}/reset_{cache}_cache", method="POST")
                request.add_header("Authorization", f"Bearer {key}")
                with urllib.request.urlopen(request, timeout=30):
                    pass

        yield Target(url, name, forget)
