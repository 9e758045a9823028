"""`Trainer`: network, optimizer and averages; one step; and the state that a checkpoint holds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from glimt.models.config import ModelConfig
from training.attention import choose_attention
from training.balance import Balance
from training.network import Batch, Network
from training.packing import MERGE
from training.schedule import average_decay, rate_factor
from training.sight import sight_weight
from training.weights import State, Weights

MAX_SKIPPED = 20  # steps in a row


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the numbers of the training are, beside the network and the data."""

    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    max_norm: float = 1.0
    average_decay: float = 0.999
    balance_rate: float = 1e-3
    seed: int = 0
    ramp_steps: int = 0  # over which the learning rate rises, whatever the schedule says
    sight: float = 1.0  # factor of the sight's weight


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did. `skipped`: its loss or gradient was not finite, and nothing changed.
    `sight`: loss of what the tower says of its own rows, for each image token."""

    loss: float
    norm: float
    learning_rate: float
    skipped: bool
    sight: float = 0.0


class Trainer:
    """Trains one network on one device."""

    def __init__(
        self, config: ModelConfig, device: torch.device, recipe: Recipe, *, compiled: bool = False
    ) -> None:
        self.device = device
        self.recipe = recipe
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        head_dims = (config.text.head_dim, config.vision.head_dim)
        attend, self.attention = choose_attention(device, self.dtype, head_dims)
        self.network = Network(config, attend, sees=True)
        self.weights = Weights(self.network, device, self.dtype, recipe.seed)
        self.balance = Balance(self.network)
        self.optimizer = self.weights.optimizer(
            recipe.learning_rate, recipe.betas, recipe.weight_decay
        )
        self.step = 0
        self.skipped = 0
        self._skipped_in_a_row = 0
        if compiled:
            for block in (*self.network.layers, *self.network.vision.blocks):
                block.compile(dynamic=True)

    def rehearse(self, batch: Batch) -> None:
        """Compute what a step computes and learn nothing: whatever compiles, compiles now."""
        self.network.train()
        spans, sight = both_losses(self.network, batch)
        (spans + sight).backward()  # type: ignore[no-untyped-call]
        self.weights.collect_gradients()
        self.weights.clear_gradients()

    def train(
        self,
        batches: Sequence[Batch],
        progress: float,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> StepReport:
        """One step over all spans of these micro-batches. `meanwhile` is called once the step is
        launched, before its result is awaited: whatever it does, the device computes.

        Raises RuntimeError if MAX_SKIPPED steps in a row had no finite gradient.
        """
        self.network.train()
        self.balance.start()
        self.weights.clear_gradients()
        num_targets = sum(batch.counts.targets for batch in batches)
        num_images = max(1, sum(batch.counts.patches // MERGE**2 for batch in batches))
        weight = self.recipe.sight * sight_weight(progress)
        losses = torch.zeros(2, device=self.device)  # of the answers, of the sight
        for batch in batches:
            spans, sight = both_losses(self.network, batch)
            parts = torch.stack((spans / num_targets, sight / num_images))
            (parts[0] + weight * parts[1]).backward()  # type: ignore[no-untyped-call]
            self.weights.collect_gradients()
            losses += parts.detach()
        rate = self.recipe.learning_rate * rate_factor(progress)
        rate *= min(1.0, (self.step + 1) / max(1, self.recipe.ramp_steps))
        results = torch.cat((losses, self.weights.gradient_norm()[None]))
        meanwhile()
        values = results.tolist()
        loss_value, sight_value, norm = values
        finite = all(math.isfinite(value) for value in values)
        if finite:
            self._update(norm, rate)
        self._count(finite)
        return StepReport(loss_value, norm, rate, not finite, sight_value)

    def _update(self, norm: float, rate: float) -> None:
        if norm > self.recipe.max_norm:
            self.weights.scale_gradients(self.recipe.max_norm / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.balance.update(self.recipe.balance_rate * rate / self.recipe.learning_rate)
        decay = average_decay(self.step, self.recipe.average_decay)
        self.weights.update_average(decay)
        self.balance.update_average(decay)
        self.weights.publish()

    def _count(self, finite: bool) -> None:
        self.step += 1
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        self.skipped += not finite
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise RuntimeError(
                f"{MAX_SKIPPED} steps in a row had a loss or gradient that is not finite: lower "
                "the learning rate, or look for broken samples"
            )

    def use_average(self) -> None:
        """Let the network compute with the averaged weights, until `use_current`."""
        self.weights.publish(average=True)
        self.balance.use_average()

    def use_current(self) -> None:
        """Back to the weights that are trained."""
        self.weights.publish()
        self.balance.use_current()

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on as if nothing had been."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "weights": self.weights.masters(),
            "average": self.weights.averages(),
            "optimizer": self.optimizer.state_dict(),
            "bias": self.balance.bias,
            "average_bias": self.balance.average,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the state is of another network."""
        self.weights.load_masters(state["weights"])
        self.weights.load_averages(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.balance.bias.copy_(state["bias"])
        self.balance.average.copy_(state["average_bias"])
        self.step, self.skipped = state["step"], state["skipped"]
        self.weights.publish()

    def start_from(self, state: State) -> None:
        """Begin with these weights and biases, as `exported` gives them, and a new optimizer.

        What is not exported starts as ever. Raises ValueError if they are of another network.
        """
        weights = {name: value for name, value in state.items() if name not in self.balance.names}
        self.weights.load_masters({**self.weights.masters(), **weights})
        self.weights.load_averages(self.weights.masters())
        biases = torch.stack([state[name] for name in self.balance.names])
        self.balance.bias.copy_(biases)
        self.balance.average.copy_(biases)
        self.weights.publish()

    def exported(self, *, average: bool = True) -> State:
        """Float32 parameters and router biases by name, as they are to be exported."""
        biases = self.balance.average if average else self.balance.bias
        weights = self.weights.averages() if average else self.weights.masters()
        return {**weights, **dict(zip(self.balance.names, biases, strict=True))}


def both_losses(network: Network, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(cross-entropy summed over the targets, the sight's loss summed over the image tokens)."""
    fields = batch.fields
    images_BD = network.encode(batch)
    logits_MV = network.decode(batch, images_BD)
    spans = functional.cross_entropy(logits_MV, fields.targets_M.long(), reduction="sum")
    if images_BD is None:
        return spans, spans.new_zeros(())
    return spans, network.sight(images_BD, fields.labels_BL)
