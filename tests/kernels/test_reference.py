"""The definitions against plain formulas written another way."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from glimt import kernels
from glimt.kernels.experts import _grouped, combine, sort_by_expert

E4M3 = torch.float8_e4m3fn


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


# --------------------------------------------------------------------------- norms, activations


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    x, g = randn(5, 24), randn(24, seed=1)
    rows = [[v / math.sqrt(sum(u * u for u in row) / 24 + 1e-5) for v in row] for row in x.tolist()]
    close(kernels.rms_norm(x, g, 1e-5), torch.tensor(rows) * g)


def test_rms_norm_rounds_before_the_weight_in_half_precision() -> None:
    x, g = randn(3, 16).bfloat16(), randn(16, seed=1).bfloat16()
    inner = (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)).bfloat16()
    assert torch.equal(kernels.rms_norm(x, g, 1e-5), inner * g)


def test_add_rms_norm_gives_the_norm_of_the_sum_and_the_sum() -> None:
    x, delta, g = randn(4, 16), randn(4, 16, seed=1), randn(16, seed=2)
    normed, total = kernels.add_rms_norm(x, delta, g, 1e-5)
    assert torch.equal(total, x + delta)
    assert torch.equal(normed, kernels.rms_norm(x + delta, g, 1e-5))


def test_silu_mul_takes_the_gate_from_the_first_half() -> None:
    x = randn(3, 10)
    gate, up = x[:, :5], x[:, 5:]
    close(kernels.silu_mul(x), gate / (1 + torch.exp(-gate)) * up)


# --------------------------------------------------------------------------- rotary embedding


@given(
    interleaved=st.booleans(),
    head_dim=st.sampled_from([16, 32]),
    pairs=st.sampled_from([4, 8]),
    sections=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_rope_turns_each_pair_by_its_axis_position(
    interleaved: bool, head_dim: int, pairs: int, sections: tuple[int, int]
) -> None:
    widths = (*sections, pairs - sum(sections))
    positions = torch.tensor([[0, 3, 9], [1, 4, 7], [2, 2, 70]])
    x = randn(3, 2, head_dim)
    cos, sin = kernels.rope_angles(positions, 10000.0, 2 * pairs, widths)
    out = kernels.rope(x, cos, sin, interleaved=interleaved)
    axis = [0] * widths[0] + [1] * widths[1] + [2] * widths[2]
    expected = x.clone()
    for token in range(3):
        for j in range(pairs):
            a, b = (2 * j, 2 * j + 1) if interleaved else (j, j + pairs)
            angle = positions[axis[j], token].item() * 10000.0 ** (-2 * j / (2 * pairs))
            z = torch.complex(x[token, :, a], x[token, :, b]) * complex(
                math.cos(angle), math.sin(angle)
            )
            expected[token, :, a], expected[token, :, b] = z.real, z.imag
    close(out, expected, 2e-5)


def test_vision_angles_are_rows_then_columns_in_block_order() -> None:
    cos, sin = kernels.vision_angles(4, 4, 2, 8, torch.device("cpu"))
    angles = torch.atan2(sin, cos)
    rows = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    columns = [0, 1, 0, 1, 2, 3, 2, 3] * 2
    close(angles[:, 0], torch.tensor(rows).float())  # inverse frequency 0 is 1
    close(angles[:, 2], torch.tensor(columns).float())
    close(angles[:, 1], torch.tensor(rows) / 100.0)


# --------------------------------------------------------------------------- FP8


def test_row_quantisation_reaches_448_and_floors_the_scale_of_empty_rows() -> None:
    x = torch.stack([randn(32) * 100, torch.zeros(32), randn(32, seed=1) * 1e-9])
    values, scale = kernels.quantize_rows(x)
    assert values.dtype == E4M3
    assert values.float()[0].abs().max() == 448.0
    close(scale[0], x[0].abs().max()[None] / 448.0)
    assert scale[1].item() == scale[2].item() == pytest.approx(1 / (448 * 512))
    assert values.float()[1].abs().max() == 0.0


@given(st.integers(1, 9), st.booleans())
def test_fp8_linear_is_the_product_of_the_rounded_factors(num_tokens: int, bias: bool) -> None:
    x, w = randn(num_tokens, 32), randn(24, 32, seed=1)
    w8, w_scale = kernels.quantize_rows(w)
    b = randn(24, seed=2) if bias else None
    x8, x_scale = kernels.quantize_rows(x)
    expected = (x8.double() * x_scale.double()) @ (w8.double() * w_scale.double()).t()
    expected = expected if b is None else expected + b.double()
    got = kernels.fp8_linear(x, w8, w_scale[:, 0], b)
    close(got.double(), expected, 1e-5)
    plain = functional.linear(x, w, b)
    assert (got - plain).abs().max() > 1e-4  # it did round


# --------------------------------------------------------------------------- routing and experts


@given(
    groups=st.sampled_from([(1, 1), (2, 1), (4, 2), (8, 3)]),
    per_token=st.integers(1, 2),
    norm=st.booleans(),
    seed=st.integers(0, 99),
)
def test_routing_follows_the_written_rule(
    groups: tuple[int, int], per_token: int, norm: bool, seed: int
) -> None:
    x, w = randn(6, 16, seed=seed), randn(8, 16, seed=seed + 1)
    bias = randn(8, seed=seed + 2) * 0.3
    weights, experts = kernels.route(
        x,
        w,
        bias,
        num_experts_per_token=per_token,
        num_groups=groups[0],
        num_groups_per_token=groups[1],
        norm_topk_prob=norm,
        scale=1.5,
    )
    for token in range(6):
        score = torch.sigmoid(w @ x[token]).tolist()
        biased = [s + b for s, b in zip(score, bias.tolist(), strict=True)]
        size = 8 // groups[0]
        by_group = [biased[g * size : (g + 1) * size] for g in range(groups[0])]
        best = sorted(range(groups[0]), key=lambda g: -sum(sorted(by_group[g])[-2:]))[: groups[1]]
        open_experts = [e for e in range(8) if e // size in best]
        chosen = sorted(open_experts, key=lambda e: -biased[e])[:per_token]
        assert sorted(experts[token].tolist()) == sorted(chosen)
        total = sum(score[e] for e in chosen) if norm else 1.0
        for expert, weight in zip(experts[token].tolist(), weights[token].tolist(), strict=True):
            assert weight == pytest.approx(1.5 * score[expert] / total, rel=1e-5)


def expert_inputs(seed: int, num_tokens: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    experts = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in range(num_tokens)])
    weights = torch.rand(num_tokens, 3, generator=generator)
    gate_up, down = randn(6, 32, 16, seed=seed + 1) / 4, randn(6, 16, 16, seed=seed + 2) / 4
    return randn(num_tokens, 16, seed=seed + 3), weights, experts, gate_up, down


def loop_over_tokens(
    x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    out = torch.zeros_like(x)
    for token in range(x.shape[0]):
        for weight, e in zip(weights[token], experts[token].tolist(), strict=True):
            if 0 <= e < gate_up.shape[0]:
                out[token] += weight * (
                    down[e] @ kernels.silu_mul((gate_up[e] @ x[token])[None])[0]
                )
    return out


@given(st.integers(0, 50), st.sampled_from([0, 2, -2]))
def test_a_token_is_the_weighted_sum_of_its_local_experts(seed: int, shift: int) -> None:
    x, weights, experts, gate_up, down = expert_inputs(seed)
    experts = experts + shift  # as on another rank: some lie outside
    expected = loop_over_tokens(x, weights, experts, gate_up, down)
    close(kernels.grouped_experts(x, weights, experts, gate_up, down), expected)
    close(_grouped(x, weights, experts, gate_up, down), expected)


def test_unset_rows_of_other_ranks_experts_count_nothing() -> None:
    weights, experts = torch.ones(2, 2), torch.tensor([[0, 9], [9, 1]])
    _, row, ends = sort_by_expert(experts, 2)
    y = torch.tensor([[1.0], [2.0], [math.nan], [math.nan]])
    assert ends.tolist() == [1, 2]
    assert combine(y, weights, row, ends).tolist() == [[1.0], [2.0]]


def test_fp8_experts_quantise_the_input_once_and_the_inner_row_anew() -> None:
    x, weights, experts, gate_up, down = expert_inputs(5)

    def rounded(t: Tensor) -> Tensor:
        q, scale = kernels.quantize_rows(t)
        return q.float() * scale

    expected = torch.zeros_like(x)
    for token in range(x.shape[0]):
        for weight, e in zip(weights[token], experts[token].tolist(), strict=True):
            inner = kernels.silu_mul((rounded(gate_up[e]) @ rounded(x[token]))[None])
            expected[token] += weight * (rounded(down[e]) @ rounded(inner)[0])
    gate_up8, gate_up_scale = kernels.quantize_rows(gate_up)
    down8, down_scale = kernels.quantize_rows(down)
    got = kernels.fp8_grouped_experts(
        x, weights, experts, gate_up8, gate_up_scale[..., 0], down8, down_scale[..., 0]
    )
    # A last-bit difference before the inner rounding can move one value to the next e4m3 step.
    assert (got - expected).abs().max() < 2e-2
    assert (got - expected).abs().median() < 1e-6


# --------------------------------------------------------------------------- vision


def test_stills_are_repeated_over_the_frames_and_normalised() -> None:
    patches = torch.randint(0, 256, (3, 3, 1, 2, 2), dtype=torch.uint8)
    mean, std = (0.5, 0.25, 0.75), (0.5, 0.2, 0.1)
    rows = kernels.normalize_pixels(patches, 2, mean, std).view(3, 3, 2, 2, 2)
    for channel in range(3):
        expected = (patches[:, channel, 0] / 255.0 - mean[channel]) / std[channel]
        close(rows[:, channel, 0], expected, 1e-5)
        assert torch.equal(rows[:, channel, 0], rows[:, channel, 1])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 6), st.sampled_from([1, 2]))
def test_the_position_table_is_sampled_like_grid_sample(
    blocks_h: int, blocks_w: int, side: int, merge: int
) -> None:
    table = randn(side * side, 5)
    h, w = blocks_h * merge, blocks_w * merge
    y = (torch.arange(h) + 0.5) / h * 2 - 1
    x = (torch.arange(w) + 0.5) / w * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
    image = table.view(side, side, 5).permute(2, 0, 1)[None]
    sampled = functional.grid_sample(
        image, grid, mode="bicubic", padding_mode="border", align_corners=False
    )[0]
    blocks = sampled.reshape(5, h // merge, merge, w // merge, merge).permute(1, 3, 2, 4, 0)
    close(kernels.resample_positions(table, h, w, merge), blocks.reshape(h * w, 5), 1e-4)


def test_the_native_grid_gives_the_table_itself() -> None:
    table = randn(36, 4)
    close(kernels.resample_positions(table, 6, 6, 1), table, 1e-6)


# --------------------------------------------------------------------------- the same in any batch


@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(64, 96), (256, 64), (384, 320), (32, 8)])
def test_a_row_of_a_linear_is_the_same_in_any_batch(num_inputs: int, num_outputs: int) -> None:
    x, w, b = randn(70, num_inputs), randn(num_outputs, num_inputs), randn(num_outputs)
    whole = kernels.linear(x, w, b)
    for length in (1, 2, 3, 4, 5, 7, 16, 33):
        close(kernels.linear(x[9 : 9 + length], w, b), whole[9 : 9 + length], 5e-5)


def test_a_token_gets_the_same_from_its_experts_in_any_batch() -> None:
    x, weights, experts, gate_up, down = expert_inputs(3, num_tokens=20)
    whole = kernels.grouped_experts(x, weights, experts, gate_up, down)
    for token in range(20):
        one = slice(token, token + 1)
        alone = kernels.grouped_experts(x[one], weights[one], experts[one], gate_up, down)
        close(alone, whole[one], 1e-6)
