"""The Triton twins of the definitions, and where they run: modules, or None each without Triton.

Every chooser takes its twins from here, so that Triton is tried in one place. A torch that knows no
CUDA does not try: importing Triton takes its time.
"""

import torch
from torch import Tensor

try:
    if torch.version.cuda is None:
        raise ImportError("this torch knows no CUDA")
    from glimt.kernels import (
        triton_attention,
        triton_chunks,
        triton_cut,
        triton_experts,
        triton_grouped,
        triton_linear,
        triton_messages,
        triton_noise,
        triton_norm_route,
        triton_peer_rows,
        triton_plan,
        triton_rope,
        triton_router,
        triton_rows,
        triton_segments,
        triton_support,
        triton_top,
    )
except ImportError:
    triton_attention = triton_chunks = triton_cut = triton_experts = triton_linear = None  # type: ignore[assignment]
    triton_grouped = triton_messages = triton_noise = triton_peer_rows = None  # type: ignore[assignment]
    triton_norm_route = triton_plan = triton_rope = triton_router = triton_rows = None  # type: ignore[assignment]
    triton_segments = triton_support = triton_top = None  # type: ignore[assignment]

__all__ = [
    "has_twin",
    "runs_on",
    "triton_attention",
    "triton_chunks",
    "triton_cut",
    "triton_experts",
    "triton_grouped",
    "triton_linear",
    "triton_messages",
    "triton_noise",
    "triton_norm_route",
    "triton_peer_rows",
    "triton_plan",
    "triton_rope",
    "triton_router",
    "triton_rows",
    "triton_segments",
    "triton_support",
    "triton_top",
]


def has_twin(x: Tensor, *others: Tensor | None) -> bool:
    """Whether an operation on x, in x's dtype, can run in Triton."""
    return x.dtype == torch.bfloat16 and runs_on(x.device) and triton_support.fits(x, *others)


def runs_on(device: torch.device) -> bool:
    """Whether there are kernels for this device."""
    if triton_support is None or device.type != "cuda":
        return False
    works: bool = triton_support.works_on(device)
    return works
