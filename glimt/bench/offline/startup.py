"""`glimt bench startup`: starts `glimt serve` several times and takes the time to ready apart."""

import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from glimt.errors import BadSettings

# `glimt serve` prints "  engine-0  weights      1.53 s  bfloat16" and "ready after 12.1 s: http…".
_PHASE = re.compile(r"^ {2}(\S+) +(\S.*?) {2,}(\d+\.\d\d) s\b")
_READY = re.compile(r"^ready after (\d+(?:\.\d+)?) s")


@dataclass(frozen=True, kw_only=True)
class StartupOptions:
    """How often, and with which flags."""

    num_iters: int = 3
    """Starts; the first finds cold caches, if the machine's are cold."""
    serve_args: str = ""
    """Flags of `glimt serve`, as one text."""
    timeout: float = 1800.0
    """Seconds after which a start has failed."""
    output_json: str | None = None
    """File for the result."""


def startup(model: str, wishes: StartupOptions, tell: Callable[[str], None]) -> int:
    """Start, measure and print. Raises BadSettings if a start fails."""
    if wishes.num_iters < 1:
        raise BadSettings("--num-iters must be at least 1")
    starts = [_start(model, wishes) for _ in range(wishes.num_iters)]
    for line in startup_table(starts):
        tell(line)
    if wishes.output_json is not None:
        Path(wishes.output_json).write_bytes(msgspec.json.encode(starts))
    return 0


def startup_table(starts: list[dict[str, float]]) -> Iterator[str]:
    """Each phase's seconds: of the first start, and the median of the later ones."""
    yield f"{'phase':<42} {'first':>8} {'later':>8}"
    for name in starts[0]:
        later = [start[name] for start in starts[1:] if name in start]
        shown = f"{statistics.median(later):8.2f}" if later else f"{'–':>8}"
        yield f"{name:<42} {starts[0][name]:8.2f} {shown}"


def _start(model: str, wishes: StartupOptions) -> dict[str, float]:
    """Seconds by phase of one start, the server's own, and as seen from outside."""
    command = [sys.executable, "-m", "glimt", "serve", model, "--port", "0"]
    command += shlex.split(wishes.serve_args)
    began_s = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    if process.stderr is None:
        raise RuntimeError("the server has no error stream")
    phases: dict[str, float] = {}
    lines = []
    try:
        for line in process.stderr:
            lines.append(line.rstrip())
            if (phase := _PHASE.match(line)) is not None:
                phases[f"{phase[1].strip()}: {phase[2].strip()}"] = float(phase[3])
            elif (ready := _READY.match(line)) is not None:
                phases["ready, by the server"] = float(ready[1])
                phases["ready, from outside"] = time.monotonic() - began_s
                return phases
            if time.monotonic() - began_s > wishes.timeout:
                raise BadSettings(f"the server was not ready after {wishes.timeout:g} s")
        raise BadSettings("the server ended before it was ready:", lines[-10:])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stderr.close()
