"""A real server as a user starts it, for end-to-end tests: process, address, and its children."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import psutil

from tests.support.processes import processes_running

READY = re.compile(r"ready after [\d.]+ s: (http://[^/]+|unix:\S+)/v1  serving (\S+)")


class Serving:
    """`glimt serve MODEL …` on a free port of the loopback, once it is ready."""

    def __init__(self, model: Path, *arguments: str, log: Path, within: Sequence[str] = ()) -> None:
        """`within`: a command that runs it elsewhere, such as `ip netns exec NAME`."""
        self.log = log
        self._log = log.open("w")
        command = [*within, sys.executable, "-m", "glimt", "serve", str(model), "--port", "0"]
        command += ["--served-model-name", "tiny", *arguments]
        if "--media-workers" not in arguments:
            command += ["--media-workers", "1"]
        self.process = subprocess.Popen(command, stderr=self._log, stdin=subprocess.DEVNULL)
        self.url = ""
        self.wait_for(lambda: bool(READY.search(log.read_text())), 90)
        self.url = READY.findall(log.read_text())[0][0]

    def __enter__(self) -> "Serving":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def wait_for(self, what: Callable[[], bool], seconds: float = 30) -> None:
        """Until `what` is true; fails with the server's log if it takes too long."""
        deadline = time.monotonic() + seconds
        while not what():
            dead = self.process.poll() is not None and not self.url
            if time.monotonic() > deadline or dead:
                raise AssertionError(f"{what} did not happen; log:\n{self.log.read_text()}")
            time.sleep(0.05)

    def child(self, module: str) -> psutil.Process:
        """The first child process that runs glimt.processes.<module>."""
        for process in self.children_running(module):
            return process
        raise AssertionError(f"there is no {module}")

    def child_of(self, module: str) -> psutil.Process:
        """The child process that runs glimt.<module>."""
        return next(processes_running(module, self.children()))

    def children_running(self, module: str) -> list[psutil.Process]:
        """All processes of the server that run glimt.processes.<module>."""
        return list(processes_running(f"processes.{module}", self.children()))

    def children(self) -> list[psutil.Process]:
        """All processes of the server but the supervisor."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, seconds: float = 30) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()
            self._log.close()
