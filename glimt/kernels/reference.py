"""The definitions of norms, activations, rotary embedding and linears, in plain torch.

They are the specification, the CPU path, and the oracle of the kernel tests. In float32 on CPU
with one thread they are written so that a token gives the same numbers alone or in a batch, in
one chunk or in several: to the last bit on the CPUs where torch's GEMM allows it (measured on
AMD EPYC with AVX2), else within rounding (measured on Intel Xeon with AVX-512, from 256 inputs).

Letters: T tokens, D width, I inputs, O outputs, N heads, H head dim, J rotary pairs.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

FP8_MAX = 448.0  # the largest finite float8_e4m3fn
MIN_ROW_SCALE = 1.0 / (FP8_MAX * 512.0)  # keeps an all-zero row finite

# Below this many rows torch's CPU GEMM takes another path, with other last bits (measured with
# MKL 2024.2: rows 1, 2 and 3 differ from the same rows in larger batches, 4 and more never do).
_MIN_GEMM_ROWS = 4


class QuantizedRows(NamedTuple):
    """Rows and their FP8 form (`quantize_rows`), made once for all FP8 products that take them."""

    x_TI: Tensor
    q_TI: Tensor
    scale_T1: Tensor

    @staticmethod
    def of(x: "Tensor | QuantizedRows") -> "QuantizedRows":
        """x itself, quantised by the definition if it is not yet."""
        return x if isinstance(x, QuantizedRows) else QuantizedRows(x, *quantize_rows(x))


class MeasuredRows(NamedTuple):
    """Rows that an FP8 product may quantise on the way in: it knows their largest magnitudes.

    `largest_TC`, float32: of each of C parts of a row; the largest of them gives its scale.
    """

    x_TI: Tensor
    largest_TC: Tensor


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b in the inputs' dtype -> [T, O]."""
    return functional.linear(fill_rows(x_TI), weight_OI, bias_O)[: x_TI.shape[0]]


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """g · cast(x / sqrt(mean(x²) + eps)): mean in float32, product in the inputs' dtype."""
    x32_TD = x_TD.float()
    scale_T1 = torch.rsqrt(x32_TD.square().mean(-1, keepdim=True) + eps)
    return weight_D * (x32_TD * scale_T1).to(x_TD.dtype)


def add_rms_norm(
    x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + delta), x + delta); the sum is rounded to the inputs' dtype first."""
    sum_TD = x_TD + delta_TD
    return rms_norm(sum_TD, weight_D, eps), sum_TD


def add_rms_norm_quantize(
    x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, eps: float
) -> tuple[QuantizedRows, Tensor]:
    """`add_rms_norm` with its first result also quantised; a delta of None adds nothing."""
    sum_TD = x_TD if delta_TD is None else x_TD + delta_TD
    return QuantizedRows.of(rms_norm(sum_TD, weight_D, eps)), sum_TD


def layer_norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) · g + b, in float32, cast to the inputs' dtype."""
    return functional.layer_norm(x_TD, (x_TD.shape[-1],), weight_D, bias_D, eps)


def silu_mul(gate_up_TF: Tensor) -> Tensor:
    """silu(gate) · up of rows [gate, up], in the inputs' dtype -> [T, F / 2]."""
    gate_TF, up_TF = gate_up_TF.chunk(2, dim=-1)
    return functional.silu(gate_TF) * up_TF


def silu_mul_quantize(gate_up_TF: Tensor, *, keeps: bool = True) -> QuantizedRows:
    """`silu_mul`, also quantised. Without `keeps` nobody will read x_TI, but for shape and type."""
    return QuantizedRows.of(silu_mul(gate_up_TF))


def rope_angles(
    positions_3T: Tensor, theta: float, rotary_dim: int, sections: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """(cos, sin), float32 [T, J]: pair j turns by position · theta^(-2j / rotary_dim).

    Pairs follow the temporal, height and width axis in contiguous runs of `sections`.
    """
    inverse_J = inverse_frequencies(theta, rotary_dim, positions_3T.device)
    position_TJ = positions_3T.t().index_select(1, _axes(sections, positions_3T.device))
    angles_TJ = position_TJ * inverse_J  # in float32
    return angles_TJ.cos(), angles_TJ.sin()


@functools.cache  # graphs go on reading what is here
@torch.inference_mode(False)  # trainings use them as well
def _axes(sections: tuple[int, int, int], device: torch.device) -> Tensor:
    """The axis of each pair, int64 [J]. Made once: each small operation of a step takes time."""
    axes = [axis for axis, count in enumerate(sections) for _ in range(count)]
    return torch.tensor(axes, dtype=torch.int64, device=device)


@functools.cache  # graphs go on reading what is here
@torch.inference_mode(False)
def inverse_frequencies(theta: float, rotary_dim: int, device: torch.device) -> Tensor:
    """theta^(-2j / rotary_dim) for j = 0 … rotary_dim / 2 - 1, float32. Nobody may change them."""
    even = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device)
    return 1.0 / theta ** (even / rotary_dim)


def rope(x_TNH: Tensor, cos_TJ: Tensor, sin_TJ: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate pairs in the first 2J dims of every head; the rest passes unchanged.

    Pair j is dims (j, j + J), or (2j, 2j + 1) if `interleaved`. Computed in float32, cast back.
    """
    num_pairs = cos_TJ.shape[-1]
    turned = x_TNH[..., : 2 * num_pairs].float()
    cos_T1J, sin_T1J = cos_TJ[:, None], sin_TJ[:, None]
    if interleaved:
        a_TNJ, b_TNJ = turned[..., 0::2], turned[..., 1::2]
    else:
        a_TNJ, b_TNJ = turned[..., :num_pairs], turned[..., num_pairs:]
    first = a_TNJ * cos_T1J - b_TNJ * sin_T1J
    second = b_TNJ * cos_T1J + a_TNJ * sin_T1J
    if interleaved:
        turned = torch.stack((first, second), dim=-1).flatten(-2)
    else:
        turned = torch.cat((first, second), dim=-1)
    return torch.cat((turned.to(x_TNH.dtype), x_TNH[..., 2 * num_pairs :]), dim=-1)


def quantize_rows(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 [..., I], float32 scale [..., 1]) with x ≈ values · scale.

    s = max(max |x| / 448, 1 / (448 · 512)); q = e4m3(clamp(x · (1 / s), -448, 448)), to nearest
    even (glm-v checkpoints' dynamic per-token scheme, as vLLM computes it).
    """
    x32 = x_TI.float()
    scale = (x32.abs().amax(-1, keepdim=True) / FP8_MAX).clamp(min=MIN_ROW_SCALE)
    values = (x32 * scale.reciprocal()).clamp(-FP8_MAX, FP8_MAX)
    return values.to(torch.float8_e4m3fn), scale


def fp8_linear(
    x: Tensor | QuantizedRows,
    weight_OI: Tensor,
    weight_scale_O: Tensor,
    bias_O: Tensor | None = None,
) -> Tensor:
    """y = s_x · s_w · (q_x q_w^T) + b, accumulated in float32, in the dtype of x.

    `weight_OI` is e4m3 with one float32 scale for each output; x is quantised row by row.
    """
    x_TI, q_TI, scale_T1 = QuantizedRows.of(x)
    if x_TI.is_cuda and x_TI.dtype == torch.bfloat16:
        return torch._scaled_mm(
            q_TI,
            weight_OI.t(),
            scale_a=scale_T1,
            scale_b=weight_scale_O[None],
            bias=bias_O,
            out_dtype=x_TI.dtype,
            use_fast_accum=True,
        )
    y_TO = linear(q_TI.float(), weight_OI.float()) * scale_T1 * weight_scale_O
    return (y_TO if bias_O is None else y_TO + bias_O.float()).to(x_TI.dtype)


def fill_rows(x: Tensor) -> Tensor:
    """x [..., M, K] with zero rows added until a float32 CPU product rounds as for any larger M."""
    missing = _MIN_GEMM_ROWS - x.shape[-2]
    if missing <= 0 or x.is_cuda or x.dtype != torch.float32:
        return x
    return functional.pad(x, (0, 0, 0, missing))
