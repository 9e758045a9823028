"""The parent's view of the process that speaks with Ray: started first, ended last, and started
again when it dies.

When it dies, so does all that Ray has placed; the same places are asked for anew, and what runs on
this machine waits for them as it would for any other machine.
"""

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from glimt.config import Settings
from glimt.errors import BadSettings, StartupError
from glimt.placement.messages import Placed, PlacerStart
from glimt.placement.orders import decode, encode
from glimt.processes.children import Backoff, Child, exit_text
from glimt.processes.control import Refused, Stop

STOP_LIMIT_S = 10.0
_MISSING = (
    "Ray is not installed: pip install 'glimt[ray]' (on all machines of the cluster, the same "
    "version), or leave --distributed-executor-backend and --data-parallel-backend out"
)


class Placer:
    """For as long as it lasts, Ray has placed what `settings` ask for; `settings` then say what is
    left for this machine to do.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        """Raises BadSettings if there is no Ray."""
        if importlib.util.find_spec("ray") is None:
            raise BadSettings(_MISSING)
        self.settings = settings
        self._wished = settings
        self._say = say
        self._placed: Placed | None = None
        self._refusal: str | None = None
        self._child: Child | None = None
        self._is_settled = threading.Event()
        self._is_stopping = False
        # The kernel ends a child with the thread that started it, so one thread starts them all.
        self._thread = threading.Thread(target=self._run, name="placer", daemon=True)

    def __enter__(self) -> "Placer":
        """Wait for the places. Raises BadSettings if there can be none."""
        self._thread.start()
        try:
            self._is_settled.wait()
        except KeyboardInterrupt:
            self._stop()
            raise SystemExit(128 + signal.SIGINT) from None
        if self._placed is None:
            self._stop()
            raise BadSettings(self._refusal or "Ray found no places")
        if self._placed.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = self._placed.gpus
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all that was placed. Raises StartupError if that is why the server ends."""
        self._stop()
        if self._refusal is not None and kind is None:
            raise StartupError(self._refusal)

    def _stop(self) -> None:
        self._is_stopping = True
        child = self._child
        if child is not None:
            child.line.send(Stop())
        self._thread.join(STOP_LIMIT_S)
        if child is not None:
            child.kill()

    def _run(self) -> None:
        backoff = Backoff()
        while not self._is_stopping:
            num_here = None if self._placed is None else self._placed.num_here
            start = PlacerStart(encode(self._wished), num_here)
            passed = ("RAY_",)
            self._child = child = Child("ray", "glimt.placement.driver", start, passes=passed)
            while (message := child.line.receive()) is not None:
                if isinstance(message, Placed):
                    self._settle(message)
                elif isinstance(message, Refused):
                    self._refuse(message.message)
            status = child.reap(STOP_LIMIT_S)
            if self._is_stopping or self._refusal is not None:
                return
            pause_s = backoff.death(time.monotonic())
            self._say(f"the process that speaks with Ray ended: {exit_text(status)}")
            if pause_s is None or self._placed is None:
                self._refuse("Ray cannot be spoken with; its messages are above")
                return
            time.sleep(pause_s)

    def _settle(self, placed: Placed) -> None:
        """Take what was found; the second time it must be the same."""
        if self._placed is None:
            self._say(f"  ray: {placed.what}")
            self._placed = placed
            self.settings = decode(placed.settings)
            self._wished = _fixed(self._wished, self.settings)
            self._is_settled.set()
        elif placed.gpus != self._placed.gpus:
            self._refuse(f"Ray now gives GPUs {placed.gpus}, in place of {self._placed.gpus}")
        else:
            self._say("Ray has placed everything again")

    def _refuse(self, reason: str) -> None:
        """Nothing good can come any more: end the server, if there is one."""
        self._refusal = reason
        if self._is_settled.is_set():
            self._say(f"ending: {reason}")
            os.kill(os.getpid(), signal.SIGTERM)
        self._is_settled.set()


def _fixed(wished: Settings, settled: Settings) -> Settings:
    """The same wish, with what others by now know of this machine."""
    now = settled.parallel
    return replace(
        wished,
        cache=replace(wished.cache, device=settled.cache.device),
        parallel=replace(
            wished.parallel,
            master_addr=now.master_addr,
            master_port=now.master_port,
            master_token=now.master_token,
            data_parallel_address=now.data_parallel_address,
            data_parallel_rpc_port=now.data_parallel_rpc_port,
        ),
    )
