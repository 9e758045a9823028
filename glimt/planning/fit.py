"""What fits: weights, tokens of KV cache, the longest request, requests at once."""

from dataclasses import dataclass

from glimt.models.config import ModelConfig
from glimt.planning.constants import Engine, Gpu
from glimt.planning.layout import Layout
from glimt.planning.links import ACTIVATION_BYTES, row_bytes
from glimt.planning.shares import gpu_share, kv_token_bytes

PAGE_TOKENS = 64  # of a KV page on a GPU


@dataclass(frozen=True, slots=True)
class Fit:
    """Of one layout. `kv_tokens` and `requests` are those of one copy; bytes are of one GPU."""

    weight_bytes: int
    kv_bytes: int  # 0: not even the weights fit
    short_bytes: int  # what is missing for a single request; 0: it fits
    kv_tokens: int
    longest: int
    requests: int
    num_copies: int

    @property
    def fits(self) -> bool:
        """Whether at least one request can run."""
        return self.requests > 0

    @property
    def all_kv_tokens(self) -> int:
        """Of all copies together."""
        return self.kv_tokens * self.num_copies

    @property
    def all_requests(self) -> int:
        """Of all copies together."""
        return self.requests * self.num_copies


@dataclass(frozen=True, slots=True)
class Room:
    """How the memory of a GPU may be used."""

    utilization: float
    max_num_seqs: int
    max_model_len: int | None  # None = the checkpoint's limit, or what fits


def fit(
    config: ModelConfig,
    layout: Layout,
    gpu: Gpu,
    engine: Engine,
    room: Room,
    *,
    fp8: bool,
    fp8_kv: bool,
    request_tokens: int,
    step_tokens: int,
) -> Fit:
    """What one GPU holds; `request_tokens`: prompt and answer of a typical request; `step_tokens`:
    most that a copy computes in a step."""
    weights = gpu_share(config, layout, fp8=fp8).weight_bytes
    token = kv_token_bytes(config.text, layout.tp, fp8=fp8_kv)
    reserved = engine.reserve_bytes + _exchange_bytes(config, layout, step_tokens, fp8=fp8)
    available = int(gpu.memory_bytes * room.utilization - weights - reserved)
    pages = max(0, available) // (token * PAGE_TOKENS)
    wanted = -(-request_tokens // PAGE_TOKENS)
    limit = config.text.max_position_embeddings
    kv_tokens = pages * PAGE_TOKENS
    longest = min(limit, kv_tokens)
    by_length = longest >= request_tokens
    return Fit(
        weight_bytes=weights,
        kv_bytes=max(0, available),
        short_bytes=max(0, wanted * PAGE_TOKENS * token - available),
        kv_tokens=kv_tokens,
        longest=min(longest, room.max_model_len or longest),
        requests=min(pages // wanted, room.max_num_seqs) if by_length else 0,
        num_copies=layout.dp,
    )


def _exchange_bytes(config: ModelConfig, layout: Layout, step_tokens: int, *, fp8: bool) -> int:
    """For rows of the copies that share experts, and for what they get back."""
    text, moe = config.text, config.text.moe
    if moe is None:
        return 0
    there = row_bytes(text.hidden_size, moe.num_experts_per_token, fp8=fp8)
    back = text.hidden_size * ACTIVATION_BYTES
    return (layout.sharing - 1) * step_tokens * (there + back)
