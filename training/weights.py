"""`Weights`: float32 masters and their average, and what the network computes with, each flat.

All parameters of one kind (with or without weight decay) lie in one vector, so that casting,
gradient norm, AdamW and the average are a handful of launches instead of a hundred each. The
network's parameters are views of the working vectors in the compute dtype: after `publish` they
are exactly the numbers that a checkpoint in that dtype would hold.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from glimt.models.config import ModelConfig
from training.network import Network

State = dict[str, Tensor]


class Group:
    """Parameters that are optimised alike."""

    def __init__(
        self, named: list[tuple[str, nn.Parameter]], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.named = named
        size = sum(parameter.numel() for _, parameter in named)
        self.master = nn.Parameter(torch.zeros(size, device=device))
        self.master.grad = torch.zeros_like(self.master)
        self.average = torch.zeros(size, device=device)
        self.working = torch.zeros(size, device=device, dtype=dtype)
        for (_, parameter), view in zip(named, self.views(self.working), strict=True):
            parameter.data = view

    def views(self, flat: Tensor) -> Iterator[Tensor]:
        """The parts of a flat vector, in the shapes of the parameters."""
        parts = torch.split(flat, [parameter.numel() for _, parameter in self.named])
        for (_, parameter), part in zip(self.named, parts, strict=True):
            yield part.view(parameter.shape)

    def state(self, flat: Tensor) -> State:
        """The parts of a flat vector by name."""
        return {name: view for (name, _), view in zip(self.named, self.views(flat), strict=True)}

    def collect_gradients(self) -> None:
        """Add the parameters' gradients to the master's, in float32, and take them away."""
        parts = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for _, parameter in self.named
        ]
        self.gradient.add_(torch.cat([part.flatten() for part in parts]))
        for _, parameter in self.named:
            parameter.grad = None

    @property
    def gradient(self) -> Tensor:
        """Float32, summed over the step's micro-batches."""
        if self.master.grad is None:
            raise RuntimeError("the master's gradient was taken away")
        return self.master.grad


class Weights:
    """The weights of a network, initialised from a seed."""

    def __init__(
        self, network: Network, device: torch.device, dtype: torch.dtype, seed: int
    ) -> None:
        self.network = network
        network.to(device)  # buffers; parameters become views of the working vectors below
        initial = initial_state(network, network.config, seed)
        named = list(network.named_parameters())
        self.groups = [
            Group([(n, p) for n, p in named if decays(n, p) is wanted], device, dtype)
            for wanted in (True, False)
        ]
        self.load_masters(initial)
        self.load_averages(initial)
        self.publish()

    def optimizer(
        self, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> torch.optim.AdamW:
        """AdamW over the masters; decay for matrices alone."""
        decay = (weight_decay, 0.0)
        groups = [
            {"params": [group.master], "weight_decay": rate}
            for group, rate in zip(self.groups, decay, strict=True)
        ]
        is_cuda = self.groups[0].master.is_cuda
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=is_cuda)

    def publish(self, *, average: bool = False) -> None:
        """Let the network compute with the masters, or with their average."""
        for group in self.groups:
            group.working.copy_(group.average if average else group.master.detach())

    def collect_gradients(self) -> None:
        """After each micro-batch's backward pass."""
        for group in self.groups:
            group.collect_gradients()

    def clear_gradients(self) -> None:
        """Before a step."""
        for group in self.groups:
            group.gradient.zero_()

    def gradient_norm(self) -> Tensor:
        """Of all parameters together, a scalar."""
        norms = [group.gradient.square().sum() for group in self.groups]
        return torch.stack(norms).sum().sqrt()

    def scale_gradients(self, factor: float) -> None:
        """Multiply all gradients."""
        for group in self.groups:
            group.gradient.mul_(factor)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """average = decay · average + (1 - decay) · master."""
        for group in self.groups:
            group.average.lerp_(group.master, 1.0 - decay)

    def masters(self) -> State:
        """Float32 views by parameter name."""
        parts = [group.state(group.master.detach()) for group in self.groups]
        return {name: part for state in parts for name, part in state.items()}

    def averages(self) -> State:
        """Float32 views by parameter name."""
        parts = [group.state(group.average) for group in self.groups]
        return {name: part for state in parts for name, part in state.items()}

    def load_masters(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError if names or shapes are not those of the network."""
        _copy(self.masters(), state)

    def load_averages(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError if names or shapes are not those of the network."""
        _copy(self.averages(), state)


def decays(name: str, parameter: Tensor) -> bool:
    """Matrices decay; tables of rows that are looked up, norms and biases do not."""
    return parameter.ndim > 1 and not name.endswith(("embedding.weight", "position_embedding"))


def _copy(ours: State, theirs: Mapping[str, Tensor]) -> None:
    wrong = ours.keys() ^ theirs.keys()
    wrong |= {
        name for name in ours.keys() & theirs.keys() if ours[name].shape != theirs[name].shape
    }
    if wrong:
        names = ", ".join(sorted(wrong)[:5])
        raise ValueError(f"these weights are of another network ({len(wrong)} differ: {names} …)")
    for name, tensor in ours.items():
        tensor.copy_(theirs[name])


# --------------------------------------------------------------------------------- initial values


def initial_state(network: nn.Module, config: ModelConfig, seed: int) -> State:
    """Float32 initial values of all parameters, on the CPU, the same on every machine.

    Matrices: normal with variance 1 / (3 · inputs), as a uniform Kaiming start has; those that
    write to the residual stream smaller by sqrt(2 · depth), as in GPT-2. The position table starts
    as sines of row and column, so that places can be told apart from the first step on.
    """
    generator = torch.Generator().manual_seed(seed)
    depth = {"layers": config.text.num_layers, "vision": config.vision.depth}
    return {
        name: _initial(name, parameter.shape, depth.get(name.split(".")[0], 1), generator)
        for name, parameter in network.named_parameters()
    }


def _initial(name: str, shape: torch.Size, depth: int, generator: torch.Generator) -> Tensor:
    if name.endswith("position_embedding"):
        return _sines(*shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    noise = torch.randn(shape, generator=generator)
    if name == "embedding.weight":
        return noise * 0.1
    if name == "lm_head.weight":
        return noise * 0.02  # nearly equal chances for all tokens
    scale = 1.0 / math.sqrt(3.0 * shape[-1])
    writes = name.endswith(("attention.o.weight", "attention.proj.weight", "down.weight", "down"))
    if writes and not name.startswith("vision.merger"):
        scale /= math.sqrt(2.0 * depth)
    return noise * scale


def _sines(rows: int, width: int, amplitude: float = 1.5) -> Tensor:
    """[side · side, width]: a quarter each of sin and cos of the row and of the column, at
    wavelengths from the whole table down to two patches.

    The amplitude makes places weigh as much as contents, which the first norm brings to a mean
    square of one. With a fifth of it the tower stays a bag of patches: it learns colours and sizes
    and, in three million samples, no place and no shape (docs/training.md)."""
    side = round(rows**0.5)
    place = torch.arange(side, dtype=torch.float32)
    wave = torch.linspace(0.0, math.log2(side / 2), width // 4)
    angles = 2.0 * math.pi * (place[:, None] + 0.5) / side * 2.0**wave
    waves = torch.cat((angles.sin(), angles.cos()), dim=1)
    table = torch.cat(
        (
            waves[:, None].expand(-1, side, -1),
            waves[None].expand(side, -1, -1),
        ),
        dim=2,
    )
    padding = torch.zeros(rows, width - table.shape[2])
    return amplitude * torch.cat((table.reshape(rows, -1), padding), dim=1)
