"""Machine: an executor and the memory below it, which can be given back and taken again.

    level 1   the KV cache, the rows and the image cache are freed, the weights go to host memory
              (on a CPU they are there already)
    level 2   the weights go, too, and are read again by `wake`

The executor of after is another one of the same sizes: whatever it had computed is gone.
"""

import contextlib
import ctypes
import gc
import logging
import time
from collections.abc import Callable

import msgspec
import torch
from torch import nn

from glimt.engine.plan import StepPlan
from glimt.errors import EngineAsleep, EngineFailed, Unsupported
from glimt.models.glm4v import Glm4v
from glimt.processes.profiling import Profiler
from glimt.runner.executor import ModelExecutor
from glimt.runner.expert_counts import ExpertCounts
from glimt.runner.launched import CrashedStep, LaunchedStep

log = logging.getLogger(__name__)


class Machine:
    """`glimt.engine.orders.Machine`, and `glimt.engine.plan.Executor`, on one device.

    `make` builds an executor over a model whose weights are on the device; `load` a model.
    """

    def __init__(
        self,
        model: Glm4v,
        *,
        make: Callable[[Glm4v], ModelExecutor],
        load: Callable[[], Glm4v],
        device: torch.device,
        profiler: Profiler,
        counts_experts: bool = False,
    ) -> None:
        self._make = make
        self._load = load
        self._device = device
        self._profiler = profiler
        self._counts_experts = counts_experts
        self._model: Glm4v | None = model
        self._counts = self._count(model)
        self._executor: ModelExecutor | None = make(model)
        self._level = 0

    def launch(self, plan: StepPlan) -> LaunchedStep | CrashedStep:
        """See `Executor`. A sleeping machine's steps fail."""
        if self._executor is None:
            return CrashedStep(plan, EngineAsleep("the engine sleeps"))
        return self._executor.launch(plan)

    def record_graphs(self) -> None:
        """See `ModelExecutor`. After a sleep, graphs are recorded as they are needed."""
        if self._executor is not None:
            self._executor.record_graphs()

    @property
    def sleep_level(self) -> int:
        """0 = awake."""
        return self._level

    @property
    def is_profiling(self) -> bool:
        """Between `start_profile` and `stop_profile`."""
        return self._profiler.is_on

    def sleep(self, level: int) -> None:
        """Go down to `level`; from there no higher one is reached but by `wake`."""
        if level <= self._level:
            return
        started_s = time.monotonic()
        self._executor = None
        if level > 1:
            self._model = self._counts = None
        elif self._model is not None:
            _move(self._model, torch.device("cpu"))
        self._level = level
        give_back(self._device)
        log.info("asleep at level %d after %.2f s", level, time.monotonic() - started_s)

    def wake(self) -> None:
        """Back to level 0. Raises EngineFailed, still asleep, if the memory is not there."""
        if self._level == 0:
            return
        started_s = time.monotonic()
        try:
            if self._model is None:
                self._model = self._load()
                self._counts = self._count(self._model)
            _move(self._model, self._device)
            self._executor = self._make(self._model)
        except (torch.OutOfMemoryError, MemoryError) as error:
            # Its traceback holds what was built so far.
            error.__traceback__ = None
            level, self._level = self._level, 0
            self.sleep(level)
            raise EngineFailed(
                "there is not enough free memory to wake up: end what took it and try again"
            ) from None
        self._level = 0
        log.info("awake after %.2f s", time.monotonic() - started_s)

    @property
    def counts(self) -> ExpertCounts | None:
        """Of the model's experts; None if they are not counted, or while there is no model."""
        return self._counts

    def forget_counts(self) -> None:
        """What a warm-up has counted is not what requests chose."""
        self._counted_since_s = time.monotonic()
        if self._counts is not None:
            self._counts.reset()

    def expert_load(self) -> str:
        """See `glimt.engine.orders.Machine`. Raises Unsupported."""
        if self._counts is None:
            raise Unsupported(
                "experts are not counted: start with --enable-expert-load-metrics, a model that "
                "has experts, and weights that are there"
            )
        load = self._counts.now(time.monotonic() - self._counted_since_s)
        return msgspec.json.encode(load).decode()

    def _count(self, model: Glm4v) -> ExpertCounts | None:
        self._counted_since_s = time.monotonic()
        counts = self._counts_experts and model.mixtures
        return ExpertCounts(model, self._device) if counts else None

    def start_profile(self) -> str:
        """See `Profiler`."""
        return self._profiler.start()

    def stop_profile(self) -> Callable[[], str]:
        """See `Profiler`."""
        return self._profiler.stop()


def settle() -> None:
    """Hide from the garbage collector what the start has left for good.

    A full collection looks at all objects, which takes longer than twenty steps of a decoding
    request: measured on a CPU machine 0.16 s after the imports alone, a microsecond when hidden.
    """
    gc.collect()
    gc.freeze()


def give_back(device: torch.device) -> None:
    """Hand free memory that torch or the C library keeps for later back to the system."""
    gc.unfreeze()  # what was for good before, an executor say, may be garbage now
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError):  # of glibc
        ctypes.CDLL(None).malloc_trim(0)


def _move(model: nn.Module, device: torch.device) -> None:
    """Move all tensors of a model, those that are neither parameters nor buffers included."""
    model.to(device)
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                setattr(module, name, value.to(device))
