"""Child processes: starting one, talking to it, and deciding when to try again.

Children are started with `subprocess` (a fresh interpreter: nothing of the parent's memory, no
fork of threads), in a session of their own so that Ctrl-C reaches only the supervisor, with
just the descriptors they need.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from glimt.processes.control import (
    ToParent,
    first_message,
)
from glimt.processes.control_line import ControlLine, pair, parent_line

MAX_DEATHS = 5
DEATHS_WINDOW_S = 600.0

# What a child may see of the environment: enough to find libraries, caches, proxies for the hub
# and the GPU's settings; keys and secrets of the operator's shell stay out.
PASSED_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONUNBUFFERED",
    "VIRTUAL_ENV",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "COLUMNS",
)
PASSED_PREFIXES = (
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "NVSHMEM_",
    "TORCH_",
    "PYTORCH_",
    "TRITON_",
    "GLOO_",
    "COV_",
)


def child_environment(passes: tuple[str, ...] = ()) -> dict[str, str]:
    """The variables that children get; and those that begin with one of `passes`."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_VARIABLES or name.startswith((*PASSED_PREFIXES, *passes))
    }


_PR_SET_PDEATHSIG = 1
SILENCE_LIMIT_S = 6.0  # of processes that speak once a second: they are stopped, or starved


class Pulse:
    """What is known of a process that says once a second that it lives."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready = False
        # When it last said so, and when its loop last made a turn.
        self.heard_s = self.progress_s = time.monotonic()

    def lives(self, stalled_s: float) -> None:
        """Note a sign of life, from a process whose loop has made no turn for so long."""
        self.heard_s = time.monotonic()
        self.progress_s = self.heard_s - stalled_s

    def complaint(
        self, stall_limit_s: float, silence_limit_s: float = SILENCE_LIMIT_S
    ) -> str | None:
        """What is wrong with a process that is ready and should give signs of life; or None."""
        now_s = time.monotonic()
        if now_s - self.heard_s > silence_limit_s:
            return f"gave no sign of life for {silence_limit_s:.0f} s"
        if now_s - self.progress_s > stall_limit_s:
            return f"made no progress for {now_s - self.progress_s:.0f} s"
        return None


class Child(Pulse):
    """One running child process and the supervisor's end of its control line."""

    def __init__(
        self,
        name: str,
        module: str,
        start: Any,
        fds: Sequence[int] = (),
        *,
        passes: tuple[str, ...] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`passes`: beginnings of further variables that it gets from the environment;
        `variables`: some that it gets unless the environment says otherwise.
        """
        super().__init__(name)
        self.start = start
        ours, theirs = pair()
        self.line: ControlLine[ToParent] = parent_line(ours)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "--control-fd", str(theirs.fileno())],
            pass_fds=(theirs.fileno(), *fds),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**(variables or {}), **child_environment(passes)},
        )
        theirs.close()
        self.line.send(first_message(start))

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, for a child that hangs."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    def reap(self, timeout_s: float = 5.0) -> int:
        """Wait for the end (killing if need be) and give the exit status; negative = signal."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()
        finally:
            self.line.close()


def end_with_parent() -> None:
    """Called by a child: have the kernel end it with the thread that started it.

    Who reads its control line notices by itself; who is stopped, or hangs in a driver, does not.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Backoff:
    """When to start a child again: at once, then after 2, 4 … 60 s, and not for ever.

    More than `MAX_DEATHS` within `DEATHS_WINDOW_S` seconds mean that starting again does not help.
    """

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()

    def death(self, now_s: float) -> float | None:
        """Note a death at monotonic time `now_s`; seconds to wait, or None = give up."""
        self._deaths.append(now_s)
        while self._deaths[0] < now_s - DEATHS_WINDOW_S:
            self._deaths.popleft()
        if len(self._deaths) > MAX_DEATHS:
            return None
        return float(min(2 ** (len(self._deaths) - 1), 60)) if len(self._deaths) > 1 else 0.0


def exit_text(status: int) -> str:
    """An exit status in words: "exit status 1", "killed by SIGKILL"."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
