"""The KV tensors and what they cost: pages of tokens, for each layer keys and values together."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from glimt.layers.attention import KvCache

# P pages, 2 key and value, G key-value heads, S slots (tokens of a page), H head dimension.

_SCALE_BYTES = 4  # FP8: one float32 per token, head, and key or value


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Shape and type of the cache without its length."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: torch.dtype  # torch.float8_e4m3fn adds scales

    @property
    def has_scales(self) -> bool:
        """Whether values are stored with a scale."""
        return self.dtype == torch.float8_e4m3fn

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes, over all layers."""
        vector = self.head_dim * self.dtype.itemsize + (_SCALE_BYTES if self.has_scales else 0)
        return self.num_layers * 2 * self.num_kv_heads * vector

    @property
    def page_bytes(self) -> int:
        """Bytes that one page takes, over all layers."""
        return self.token_bytes * self.page_size

    def allocate(self, num_pages: int, device: torch.device) -> KvCache:
        """The cache, zeroed: what kernels read beyond a row's end must at least be finite."""
        shape = (num_pages, 2, self.num_kv_heads, self.page_size)
        layers = tuple(
            _zeros((*shape, self.head_dim), self.dtype, device) for _ in range(self.num_layers)
        )
        scales = None
        if self.has_scales:
            scales = tuple(
                torch.ones(shape, dtype=torch.float32, device=device)
                for _ in range(self.num_layers)
            )
        return KvCache(layers=layers, scales=scales, page_size=self.page_size)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU from the kernel's zero pages, so that memory is taken page by page as it is
    used (torch writes its zeros at once, which costs a second for each gigabyte).
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(dtype).view(shape)
