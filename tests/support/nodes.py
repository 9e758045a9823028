"""A machine without HTTP, played by a second `glimt serve` beside the first."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.support.processes import processes_running

TOKEN = "a token of sixteen or more"


def free_port() -> int:
    """A port of the loopback that nobody has."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def break_off(request: urllib.request.Request, signum: int, *victims: psutil.Process) -> float:
    """Signal `victims` in the middle of a streamed answer, which ends with an error that clients
    retry; seconds until then.
    """
    with urllib.request.urlopen(request, timeout=60) as response:
        response.readline()
        started_s = time.monotonic()
        for victim in victims:
            victim.send_signal(signum)
        events = [line for line in response.read().decode().splitlines() if line]
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "not_ready"
    return time.monotonic() - started_s


class HeadlessNode:
    """`glimt serve … --headless`: it has no port, so only its log says how it is."""

    def __init__(
        self,
        model: Path,
        *arguments: str,
        log: Path,
        within: Sequence[str] = (),
        token: str = TOKEN,
    ) -> None:
        """`within`: a command that runs it elsewhere, such as `ip netns exec NAME`."""
        self.log = log
        command = [*within, sys.executable, "-m", "glimt", "serve", str(model), "--headless"]
        with log.open("a") as output:
            self.process = subprocess.Popen(
                [*command, "--served-model-name", "tiny", *arguments],
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "GLIMT_MASTER_TOKEN": token},
            )

    def all(self) -> list[psutil.Process]:
        """The supervisor and its children."""
        supervisor = psutil.Process(self.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def child(self, module: str) -> psutil.Process:
        """The first child process that runs glimt.processes.<module>."""
        for process in processes_running(f"processes.{module}", self.all()):
            return process
        raise AssertionError(f"there is no {module}; log:\n{self.log.read_text()}")

    def end(self) -> None:
        """SIGKILL; what it leaves must end by itself."""
        self.process.kill()
        self.process.wait(10)
