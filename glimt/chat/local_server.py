"""A server of one's own for one chat: `glimt serve MODEL` as a child, until the chat ends."""

import ctypes
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from glimt.chat.text import harmless
from glimt.errors import StartupError

_READY = re.compile(r"^ready after [\d.]+ s: (http://\S+/v1)  serving ", re.MULTILINE)
_STOP_TIMEOUT_S = 15.0  # the server itself kills what does not end within 5 s
_POLL_S = 0.1
_TAIL_BYTES = 8 << 10
_MAX_TAIL_LINES = 12
# A wish for another address must not reach a server that only this chat talks to.
_NOT_PASSED = ("GLIMT_UDS", "GLIMT_API_KEY", "GLIMT_API_KEY_FILE", "GLIMT_ROOT_PATH")
_PR_SET_PDEATHSIG = 1

Progress = Callable[[str, float], None]  # (the newest line of the log, seconds so far)


class LocalServer:
    """The child process. Use it as a context: it is stopped at the end, whatever happens.

    It listens on a free port of the loopback, with a key that nobody else knows. Other flags
    reach it as environment variables (GLIMT_QUANTIZATION=fp8). Its log is removed when it has
    ended well.
    """

    def __init__(self, model: str, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self.api_key = secrets.token_urlsafe()
        command = [sys.executable, "-m", "glimt", "serve", model]
        command += ["--host", "127.0.0.1", "--port", "0", "--reasoning-parser", "glm45"]
        variables = {name: text for name, text in environment.items() if name not in _NOT_PASSED}
        try:
            log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(log, "wb", opener=_private) as stream:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    env={**variables, "GLIMT_API_KEY": self.api_key},
                    start_new_session=True,  # Ctrl-C at the terminal is for the chat alone
                    preexec_fn=_end_with_parent(),
                )
        except OSError as error:
            raise StartupError(f"{log} cannot be written: {error.strerror}") from None

    def __enter__(self) -> "LocalServer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def wait_until_ready(self, progress: Progress) -> str:
        """Its base URL. Raises StartupError with the end of its log if it ends instead."""
        started_s = time.monotonic()
        while True:
            is_over = self._process.poll() is not None  # looked at first: the log is then whole
            tail = self._tail()
            if found := _READY.search(tail):
                return found[1]
            if is_over:
                raise StartupError(f"the server did not start. {self.last_words()}")
            progress(_newest_line(tail), time.monotonic() - started_s)
            time.sleep(_POLL_S)

    def last_words(self) -> str | None:
        """How it ended and the last lines of its log, if it has ended."""
        if self._process.poll() is None:
            return None
        lines = [line for line in re.split(r"[\r\n]+", self._tail()) if line.strip()]
        shown = "\n".join(f"    {harmless(line)}" for line in lines[-_MAX_TAIL_LINES:])
        return f"Its log, {self.log}, ends with\n{shown}"

    def stop(self) -> None:
        """End it and everything it started. Its log stays if it ended by itself."""
        if self._process.poll() is not None:
            return
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # no impatience leaves it behind
        try:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()  # its own children end with it
                self._process.wait()
            self.log.unlink(missing_ok=True)
        finally:
            signal.signal(signal.SIGINT, before)

    def _tail(self) -> str:
        with self.log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return stream.read().decode("utf-8", "replace")


def _newest_line(text: str) -> str:
    """The newest line that tells of progress; lines with name=value tell of settings."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    told = [line for line in lines if line and "=" not in line and not line.startswith("glimt ")]
    is_checked = any(line.startswith("resolved: ") for line in lines)
    return told[-1] if told else "loading torch" if is_checked else "checking the checkpoint"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _end_with_parent() -> Callable[[], None]:
    """What makes the kernel send SIGTERM to a child when its parent dies, even of SIGKILL."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
