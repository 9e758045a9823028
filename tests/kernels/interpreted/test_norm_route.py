"""A norm and the router behind it in one launch: the same bits as in two or three."""

import pytest
import torch
from torch import Tensor

from glimt.kernels import triton_norm_route, triton_router, triton_rows
from glimt.kernels.pending import Delta, ExpertRows, LinearParts

RULE = {"num_experts_per_token": 3, "norm_topk_prob": True, "scale": 2.5}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def deltas(num_tokens: int, width: int) -> dict[str, Delta]:
    parts = randn(2 * num_tokens, width, seed=1).float().view(2, num_tokens, width)
    scales = (randn(num_tokens, 1, seed=2).float(), randn(width, seed=3).float())
    weights = randn(num_tokens, 1, seed=5).float()
    rows = ExpertRows(randn(num_tokens, width, seed=6), weights, weights.long(), 0, False)
    plain = randn(num_tokens, width, seed=4)
    return {"plain": plain, "parts": LinearParts(parts, *scales), "experts": rows}


@pytest.mark.parametrize(("num_tokens", "kind"), [(1, "plain"), (1, "parts"), (2, "parts")])
@pytest.mark.parametrize(("num_experts", "width"), [(8, 4096), (24, 3056)])
def test_one_launch_does_what_two_do(
    num_tokens: int,
    kind: str,
    num_experts: int,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_norm_route, "_MAX_TOKENS", 2)
    x, delta, g = (
        randn(num_tokens, width, seed=7),
        deltas(num_tokens, width)[kind],
        randn(width, seed=8),
    )
    router, bias = randn(num_experts, width, seed=9) / 64, randn(num_experts, seed=10).float()
    rows, total = triton_rows.add_rms_norm_quantize(x, delta, g, 1e-5)
    wanted = triton_router.route(rows.x_TI, router, bias, **RULE)
    arrived = torch.zeros(2, dtype=torch.int32)
    for quantizes in (True, False):
        done = triton_norm_route.norm_and_route(
            x, delta, g, 1e-5, router, bias, arrived, quantizes=quantizes, **RULE
        )
        assert done is not None
        got, got_total, routed = done
        assert torch.equal(got_total, total)
        assert torch.equal(got.x_TI, rows.x_TI)
        if quantizes:
            assert torch.equal(got.q_TI.view(torch.uint8), rows.q_TI.view(torch.uint8))
            assert torch.equal(got.scale_T1, rows.scale_T1)
        assert torch.equal(routed[0], wanted[0])
        assert torch.equal(routed[1], wanted[1])
        assert not arrived.any()


@pytest.mark.parametrize(
    ("num_tokens", "kind", "width", "room"),
    [(2, "plain", 4096, 4), (1, "plain", 4096, 0), (1, "experts", 4096, 4), (1, "plain", 1024, 4)],
)
def test_what_one_launch_is_not_for_is_left_to_others(
    num_tokens: int, kind: str, width: int, room: int
) -> None:
    given = (
        randn(num_tokens, width, seed=7),
        deltas(num_tokens, width)[kind],
        randn(width, seed=8),
    )
    router, arrived = randn(8, width, seed=9), torch.zeros(room, dtype=torch.int32)
    route = (*given, 1e-5, router, torch.zeros(8), arrived)
    assert triton_norm_route.norm_and_route(*route, quantizes=True, **RULE) is None
