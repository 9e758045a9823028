"""Random weights of a trained model's sizes and ranges, for benchmarks without a checkpoint.

They cost what real ones cost: nothing is zero or constant, activations stay finite, FP8 uses its
whole range, and the router spreads tokens evenly over the experts.
"""

import math
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from glimt.models.quantize import FP8_MAX
from glimt.models.weights import allocate

_STD = 0.02  # of trained linear weights
_FP8_STD = FP8_MAX / 4  # a row's largest weight is about four standard deviations
_CHUNK = 1 << 24  # elements made at once, so that no float32 copy of a tensor ever exists


@torch.no_grad()
def fill_dummy(model: nn.Module, device: torch.device, dtype: torch.dtype, seed: int) -> None:
    """Give every parameter of `model` (on the meta device) memory and random values.

    A parameter's values depend on the seed and its name only.
    """
    for name, tensor in allocate(model, device, dtype).items():
        generator = torch.Generator(device=device)
        generator.manual_seed((zlib.crc32(name.encode()) << 32) ^ (seed & 0xFFFF_FFFF))
        mean, std = _distribution(name, tensor)
        for part in _chunks(tensor):
            noise = torch.randn(part.shape, generator=generator, device=device)
            noise.mul_(std).add_(mean)
            if tensor.dtype == torch.float8_e4m3fn:
                noise.clamp_(-FP8_MAX, FP8_MAX)
            part.copy_(noise)


def _distribution(name: str, tensor: Tensor) -> tuple[float, float]:
    """(mean, standard deviation) of a parameter's values."""
    if tensor.dtype == torch.float8_e4m3fn:
        return 0.0, _FP8_STD
    if name.endswith("_scale"):
        return _STD / _FP8_STD, 0.02 * _STD / _FP8_STD
    if name.endswith("router.weight"):
        # Of inputs of size one this makes logits of size one: clearly different from each other,
        # and no expert preferred.
        return 0.0, 1.0 / math.sqrt(tensor.shape[-1])
    if name.endswith("router.bias"):
        return 0.0, 0.0  # a bias is there to even out; random routers are even
    if name.endswith("bias"):
        return 0.0, _STD
    if tensor.dim() == 1:  # norms
        return 1.0, 0.05
    return 0.0, _STD


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Views that cover `tensor`, each of a bounded size."""
    flat = tensor.view(-1)
    for start in range(0, flat.numel(), _CHUNK):
        yield flat[start : start + _CHUNK]
