"""Rows of a step over a paged cache: random keys and values, NaN where nothing was written."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glimt.kernels import reference_attention


@dataclass(frozen=True)
class Heads:
    """`queries` of one token, on `groups` key-value heads."""

    queries: int
    groups: int
    dim: int


@dataclass(frozen=True)
class PagedRows:
    """The arguments of `paged_attention`."""

    tensors: tuple[Tensor, ...]  # q, cache, page table, query starts, context lengths
    options: dict[str, Any]

    def exact(self) -> Tensor:
        """What the definition gives in float32 for the same values.

        It may read entries of the table that belong to no row, so those are brought into range.
        """
        q, cache, table, *rest = self.tensors
        cache = cache if self.options["scale_P2GS"] is not None else cache.float()
        table = table.clamp(max=len(cache) - 1)
        return reference_attention.paged_attention(q.float(), cache, table, *rest, **self.options)


def paged_rows(
    rows: list[tuple[int, int]],
    heads: Heads,
    page: int,
    *,
    fp8: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> PagedRows:
    """`rows`: (tokens with KV, those of them that are queries of this step) of each.

    Table entries that no row may read lie far outside of the cache.
    """
    seed = len(rows) + heads.queries + sum(map(sum, rows))
    generator = torch.Generator(device).manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    num_pages = [-(-length // page) for length, _ in rows]
    order = torch.randperm(sum(num_pages) + 2, generator=generator, device=device)
    shape = (order.numel(), 2, heads.groups, page, heads.dim)
    cache = torch.full(shape, torch.nan, dtype=dtype, device=device)
    cache = cache.to(torch.float8_e4m3fn if fp8 else dtype)
    scale = torch.full(shape[:-1], torch.nan, device=device) if fp8 else None
    table = torch.full((len(rows), max(num_pages) + 1), 2**30, dtype=torch.int32, device=device)
    for row, (length, _) in enumerate(rows):
        pages, order = order[: num_pages[row]], order[num_pages[row] :]
        table[row, : num_pages[row]] = pages
        index = torch.arange(length, device=device)
        slots = pages[index // page] * page + index % page
        k, v = randn(length, heads.groups, heads.dim), randn(length, heads.groups, heads.dim)
        reference_attention.write_kv(k, v, cache, slots, scale)
    new = torch.tensor([0, *(count for _, count in rows)])
    q = randn(int(new.sum()), heads.queries + heads.groups, heads.dim)[:, : heads.queries]
    lengths = torch.tensor([length for length, _ in rows], dtype=torch.int32)
    options = {
        "max_query_len": int(new.max()),
        "max_context_len": int(lengths.max()),
        "scale_P2GS": scale,
    }
    starts = new.cumsum(0).to(device, torch.int32)
    return PagedRows((q, cache, table, starts, lengths.to(device)), options)
