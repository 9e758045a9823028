"""A program at a terminal of its own, as somebody who types sees it."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from types import TracebackType

CTRL_C, CTRL_D = "\x03", "\x04"


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class PtySession:
    """The program runs until the context ends. `seen` is everything it has shown."""

    def __init__(
        self, command: list[str], environment: dict[str, str], columns: int = 80, rows: int = 24
    ) -> None:
        self._screen, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            command,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(terminal)
        self.seen = ""
        self._unread_from = 0

    def __enter__(self) -> "PtySession":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            for _ in range(20):  # a key is lost while it is not being waited for
                self.type(CTRL_D)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.2)
                    break
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        self.process.kill()
        self.process.wait()
        os.close(self._screen)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._screen, text.encode())

    def interrupt(self, pattern: str) -> None:
        """Press Ctrl-C, again if need be, until it shows `pattern`.

        Between showing a prompt and waiting for keys, Python notices a signal only at the next key.
        """
        for _ in range(30):
            self.type(CTRL_C)
            with contextlib.suppress(AssertionError):
                self.expect(pattern, 1)
                return
        raise AssertionError(f"{pattern!r} was not shown:\n{self.seen!r}")

    def expect(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        """Wait until it shows `pattern` after what was expected before; fails if it does not."""
        deadline = time.monotonic() + seconds
        while True:
            if found := re.compile(pattern).search(self.seen, self._unread_from):
                self._unread_from = found.end()
                return found
            if time.monotonic() > deadline or not self._read():
                rest = self.seen[self._unread_from :]
                raise AssertionError(f"{pattern!r} was not shown; since the last match:\n{rest!r}")

    def ended(self, seconds: float = 20) -> int:
        """Wait for the end, reading what is still shown; the exit status."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read()
        return self.process.wait(1)

    def _read(self) -> bool:
        """False once nothing can come any more."""
        if select.select([self._screen], [], [], 0.1)[0]:
            try:
                self.seen += os.read(self._screen, 65536).decode("utf-8", "replace")
            except OSError:  # the last one at the terminal has left
                return False
        return True
