"""Self-attention over the paged KV cache, and the two values it is given: `Step` and `KvCache`.

Letters: T tokens of the step, R rows (requests) in it, M pages of a row, P pages of the cache,
N query heads, G key-value heads, S slots of a page, H head dim. Heads are those of this rank.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from glimt import kernels
from glimt.kernels import Delta, QuantizedRows
from glimt.layers.linear import Linear
from glimt.layers.rope import Angles
from glimt.parallel.exchange import AS_THEY_ARE, Exchange
from glimt.parallel.mesh import Mesh


@dataclass(frozen=True, slots=True)
class Step:
    """The device's view of one step: T tokens, the queries of R rows one after another.

    Every row has at least one token, and every slot is one that the step may write. (A padding
    row of a graph repeats another row's query and context, and writes to a slot nobody reads.)
    """

    positions_3T: Tensor  # int64: temporal, height and width position of each token
    slots_T: Tensor  # int64: page · page_size + offset of each token's KV
    page_table_RM: Tensor  # int32: pages of each row, in order
    query_starts_R1: Tensor  # int32 [R + 1]: the row's first token; the last entry is T
    context_lens_R: Tensor  # int32: the row's tokens with KV once this step has written its own
    max_query_len: int
    max_context_len: int
    exchange: Exchange = AS_THEY_ARE
    num_chunk_pages: int = 0  # of all rows of several tokens together; 0 if that is not known


class LayerCache(NamedTuple):
    """One layer's pages; `scale_P2GS` iff they are e4m3."""

    kv_P2GSH: Tensor
    scale_P2GS: Tensor | None


@dataclass(frozen=True, slots=True)
class KvCache:
    """The pages of all layers: kv_P2GSH each, and float32 scales [P, 2, G, S] iff FP8."""

    layers: tuple[Tensor, ...]
    scales: tuple[Tensor, ...] | None
    page_size: int

    def layer(self, index: int) -> LayerCache:
        """The part that layer `index` reads and writes."""
        return LayerCache(self.layers[index], self.scales[index] if self.scales else None)


class Attention(nn.Module):
    """o(softmax(q k^T / sqrt H, causal) v), grouped queries, partial rotary embedding.

    qkv is one matrix: query rows, key rows, value rows. Where there are more ranks than key-value
    heads, ranks hold copies. The result is this rank's part of the sum over the tp axis.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        bias: bool,
        mesh: Mesh,
        fp8: frozenset[str] = frozenset(),
        defers: bool = False,
    ) -> None:
        """`defers`: what follows is a norm that may carry out the output's sum."""
        super().__init__()
        self.defers = defers
        self.num_heads = mesh.tp_share(num_heads, "num_attention_heads")
        self.num_kv_heads = max(1, num_kv_heads // mesh.tp_size)
        self.head_dim = head_dim
        width = (self.num_heads + 2 * self.num_kv_heads) * head_dim
        self.qkv = Linear(hidden_size, width, bias=bias, fp8="qkv" in fp8)
        self.o = Linear(self.num_heads * head_dim, hidden_size, fp8="o" in fp8)

    def forward(
        self,
        x: Tensor | QuantizedRows,
        step: Step,
        angles: Angles,
        cache: LayerCache,
    ) -> Delta:
        """[T, D] -> [T, D]; writes the tokens' keys and values to their slots first."""
        heads_TNH = self.qkv(x).unflatten(1, (-1, self.head_dim))
        turning = (heads_TNH, angles.cos_TJ, angles.sin_TJ, cache.kv_P2GSH, step.slots_T)
        rows = (step.page_table_RM, step.query_starts_R1, step.context_lens_R)
        if step.max_query_len == 1:
            out = kernels.decode_attention(
                *turning,
                *rows,
                interleaved=angles.interleaved,
                max_context_len=step.max_context_len,
                scale_P2GS=cache.scale_P2GS,
                measures=self.o.weight_scale is not None,
            )
            return self.o.branch(out, defers=self.defers)
        q_TNH = kernels.turn_and_write_kv(
            *turning, cache.scale_P2GS, interleaved=angles.interleaved
        )
        out_TNH = kernels.paged_attention(
            q_TNH,
            cache.kv_P2GSH,
            *rows,
            max_query_len=step.max_query_len,
            max_context_len=step.max_context_len,
            scale_P2GS=cache.scale_P2GS,
            num_chunk_pages=step.num_chunk_pages,
        )
        return self.o.branch(out_TNH.flatten(1), defers=self.defers)
