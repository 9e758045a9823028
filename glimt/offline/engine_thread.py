"""The engine loop in a thread of this process, with a queue where others have sockets."""

import logging
import queue
import threading
from collections.abc import Callable

import msgspec

from glimt.engine.loop import EngineLoop
from glimt.processes.build import Engine
from glimt.wire import Abort, EngineInbound, Outputs, ResetCaches, Submit

log = logging.getLogger(__name__)


class QueueMailbox:
    """The loop's mailbox for the one server in the same process. `post` is for other threads."""

    def __init__(self, deliver: Callable[[Outputs], None]) -> None:
        self._deliver = deliver
        self._queue: queue.SimpleQueue[EngineInbound | None] = queue.SimpleQueue()

    def post(self, message: msgspec.Struct) -> bool:
        """Hand the engine a message; always taken."""
        if isinstance(message, Submit | Abort | ResetCaches):
            self._queue.put(message)
        return True

    def wake(self) -> None:
        """Let `receive` return at once."""
        self._queue.put(None)

    def receive(self, timeout_s: float) -> list[EngineInbound]:
        """All messages that wait; blocks up to `timeout_s` for the first."""
        messages: list[EngineInbound] = []
        try:
            message = self._queue.get(block=timeout_s > 0, timeout=timeout_s)
            while True:
                if message is not None:
                    messages.append(message)
                message = self._queue.get_nowait()
        except queue.Empty:
            return messages

    def send(self, server: int, outputs: Outputs) -> None:
        """Hand outputs over; never blocks."""
        self._deliver(outputs)


class EngineThread:
    """Runs an engine until stopped. `deliver` and `on_death` are called in its thread."""

    def __init__(
        self,
        engine: Engine,
        deliver: Callable[[Outputs], None],
        on_death: Callable[[], None],
    ) -> None:
        self.info = engine.info
        self._mailbox = QueueMailbox(deliver)
        self._loop = EngineLoop(
            engine.scheduler, engine.executor, self._mailbox, overlap=engine.overlap
        )
        self._on_death = on_death
        self._close = engine.close
        self._thread = threading.Thread(target=self._run, name="glimt-engine", daemon=True)
        self._thread.start()

    def post(self, message: msgspec.Struct) -> bool:
        """Hand the engine a message."""
        return self._mailbox.post(message)

    def stop(self) -> None:
        """End all requests and wait for the thread."""
        self._loop.stop()
        self._mailbox.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run()
        except Exception:
            log.exception("the engine failed")
            self._on_death()
        finally:
            self._close()
