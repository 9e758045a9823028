"""The operations of the networks. Each has one definition, in plain torch, in `reference*.py`.

A fast kernel is a twin of its definition: same name, same signature, same contract. Model code
imports operations from here and never knows which of the two it gets.

    linear            y = x W^T + b
    rms_norm          g · x / sqrt(mean x² + eps)
    add_rms_norm      the same of x + delta; also gives the sum
    add_rms_norm_quantize   the same, with the norm also quantised
    layer_norm        (x - mean) / sqrt(var + eps) · g + b
    silu_mul          silu(gate) · up, of halves of one row
    silu_mul_quantize the same, also quantised
    rope_angles       cos and sin of M-RoPE angles from three position axes
    vision_angles     cos and sin of the vision tower's row and column angles
    rope              rotate the first dims of every head
    quantize_rows     FP8 values and one scale for each row
    fp8_linear        linear with FP8 weights, activations quantised row by row
    route             experts and their weights for each token
    grouped_experts   weighted sum of a token's experts
    fp8_grouped_experts   the same with FP8 weights
    fp8_moe           the same, plus an FP8 expert that every token has
    pack_rows         rows, and which experts they go to, as bytes of a message
    unpack_rows       what a message holds
    write_kv          store keys and values of new tokens in their pages
    turn_and_write_kv rope of queries and keys, and write_kv, at once
    paged_attention   causal attention of new tokens over the pages of their rows
    decode_attention  turn_and_write_kv and paged_attention of rows of one token, at once
    segment_attention full attention inside each segment (an image, a video step)
    normalize_pixels  uint8 -> normalised rows of patches
    resample_positions  the vision tower's position table for another patch grid
"""

from glimt.kernels.attention import (
    decode_attention,
    paged_attention,
    rope,
    segment_attention,
    turn_and_write_kv,
)
from glimt.kernels.choice import (
    add_rms_norm,
    add_rms_norm_quantize,
    fp8_linear,
    norm_and_route,
    quantize_rows,
    rms_norm,
    route,
    settled,
    silu_mul,
    silu_mul_quantize,
)
from glimt.kernels.experts import fp8_grouped_experts, fp8_moe, grouped_experts
from glimt.kernels.messages import pack_rows, unpack_rows
from glimt.kernels.pending import Delta
from glimt.kernels.reference import MeasuredRows, QuantizedRows, layer_norm, linear, rope_angles
from glimt.kernels.reference_attention import write_kv
from glimt.kernels.reference_experts import Fp8Mlp
from glimt.kernels.reference_messages import RowForm
from glimt.kernels.reference_vision import normalize_pixels, resample_positions, vision_angles

__all__ = [
    "Delta",
    "settled",
    "QuantizedRows",
    "MeasuredRows",
    "Fp8Mlp",
    "linear",
    "rms_norm",
    "add_rms_norm",
    "add_rms_norm_quantize",
    "layer_norm",
    "silu_mul",
    "silu_mul_quantize",
    "rope_angles",
    "vision_angles",
    "rope",
    "quantize_rows",
    "fp8_linear",
    "route",
    "norm_and_route",
    "grouped_experts",
    "fp8_grouped_experts",
    "fp8_moe",
    "RowForm",
    "pack_rows",
    "unpack_rows",
    "write_kv",
    "turn_and_write_kv",
    "paged_attention",
    "decode_attention",
    "segment_attention",
    "normalize_pixels",
    "resample_positions",
]
