"""How many tokens chose each expert, counted where they choose and read without waiting for it.

The counters lie in the layers and are part of each step, CUDA graphs included; rows that only fill
up a graph are counted as well.
"""

import numpy as np
import torch

from glimt.engine.plan import IntArray
from glimt.experts.load import ExpertLoad
from glimt.models.glm4v import Glm4v
from glimt.runner.staging import ReturnedTensors, ReturnPath


class ExpertCounts:
    """The counters of one model, on `device`; they start anew with it."""

    def __init__(self, model: Glm4v, device: torch.device) -> None:
        mixtures = model.mixtures
        for moe in mixtures.values():
            moe.count_choices(device)
        moe_config = model.config.text.moe
        self.layers = tuple(mixtures)
        self.num_experts = 0 if moe_config is None else moe_config.num_experts
        self._model = model
        self._path = ReturnPath(device)
        self._coming: ReturnedTensors | None = None
        self._last_LE: IntArray = np.zeros((len(self.layers), self.num_experts), np.int64)

    def reset(self) -> None:
        """Forget what a warm-up has counted."""
        for moe in self._model.mixtures.values():
            if moe.choices is not None:
                moe.choices.zero_()

    def latest(self) -> IntArray:
        """int64 [layers, experts] as they were at the call before; asks for newer ones."""
        if self._coming is None or self._coming.is_there:
            if self._coming is not None:
                self._last_LE = self._coming.wait()[0].numpy()
            self._coming = self._ask()
        return self._last_LE

    def now(self, seconds: float) -> ExpertLoad:
        """All that was counted in so many seconds, once the device has done what it was given."""
        counts_LE = self._ask().wait()[0].tolist()
        layers = {layer: tuple(row) for layer, row in zip(self.layers, counts_LE, strict=True)}
        return ExpertLoad(num_experts=self.num_experts, layers=layers, seconds=seconds)

    def _ask(self) -> ReturnedTensors:
        # Moving a model replaces its tensors, so they are looked up each time.
        choices = [moe.choices for moe in self._model.mixtures.values()]
        return self._path.send([torch.stack([row for row in choices if row is not None])])
