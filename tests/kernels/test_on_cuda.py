"""The CUDA paths against the definitions on CPU, and the promise of a step without host syncs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from glimt import kernels
from glimt.layers.attention import KvCache, Step
from glimt.models.config_json import read_config
from glimt.models.glm4v import Glm4v
from glimt.parallel.mesh import Mesh
from tests.support.configs import tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),  # torch calls it a prototype
]


def randn(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.bfloat16()


@contextmanager
def no_host_sync() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative to the size of the whole: bfloat16 has 8 bits."""
    error = (got.cpu().float() - expected.float()).norm() / expected.float().norm()
    assert error < tolerance


@pytest.mark.parametrize("num_tokens", [1, 3, 17, 200])
@pytest.mark.parametrize("bias", [False, True])
def test_fp8_linear(num_tokens: int, bias: bool) -> None:
    x, w = randn(num_tokens, 256), randn(320, 256, seed=1)
    w8, scale = kernels.quantize_rows(w)
    b = randn(320, seed=2) if bias else None
    expected = kernels.fp8_linear(x, w8, scale[:, 0], b)
    on = [None if t is None else t.cuda() for t in (x, w8, scale[:, 0].contiguous(), b)]
    with no_host_sync():
        got = kernels.fp8_linear(*on)
    near(got, expected, 0.01)


def expert_inputs(num_tokens: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(num_tokens)
    experts = torch.stack([torch.randperm(16, generator=generator)[:4] for _ in range(num_tokens)])
    weights = torch.rand(num_tokens, 4, generator=generator)
    gate_up, down = randn(16, 128, 96, seed=1) / 10, randn(16, 96, 64, seed=2) / 10
    return randn(num_tokens, 96, seed=3), weights, experts, gate_up, down


@pytest.mark.parametrize("num_tokens", [1, 5, 64, 300])
@pytest.mark.parametrize("shift", [0, 9])
def test_grouped_experts(num_tokens: int, shift: int) -> None:
    x, weights, experts, gate_up, down = expert_inputs(num_tokens)
    experts = experts - shift
    expected = kernels.grouped_experts(x, weights, experts, gate_up, down)
    on = [t.cuda() for t in (x, weights, experts, gate_up, down)]
    with no_host_sync():
        got = kernels.grouped_experts(*on)
    near(got, expected, 0.01)


@pytest.mark.parametrize("num_tokens", [1, 5, 64, 300])
@pytest.mark.parametrize("shift", [0, 9])
def test_fp8_grouped_experts(num_tokens: int, shift: int) -> None:
    x, weights, experts, gate_up, down = expert_inputs(num_tokens)
    g8, g_scale = kernels.quantize_rows(gate_up)
    d8, d_scale = kernels.quantize_rows(down)
    inputs = (x, weights, experts - shift, g8, g_scale[..., 0], d8, d_scale[..., 0])
    expected = kernels.fp8_grouped_experts(*inputs)
    on = [t.contiguous().cuda() for t in inputs]
    with no_host_sync():
        got = kernels.fp8_grouped_experts(*on)
    near(got, expected, 0.02)


def make_step(lengths: list[int], new: list[int], num_pages: int, page_size: int) -> Step:
    """Rows of scattered pages whose last `new` tokens are in the step."""
    pages = torch.randperm(num_pages, generator=torch.Generator().manual_seed(1))
    width = -(-max(lengths) // page_size)
    table = pages[: len(lengths) * width].view(len(lengths), width)
    index = [torch.arange(length - n, length) for length, n in zip(lengths, new, strict=True)]
    slots = [table[row, i // page_size] * page_size + i % page_size for row, i in enumerate(index)]
    return Step(
        torch.cat(index).expand(3, -1).contiguous(),
        torch.cat(slots),
        table.to(torch.int32),
        torch.tensor([0, *new], dtype=torch.int32).cumsum(0).to(torch.int32),
        torch.tensor(lengths, dtype=torch.int32),
        max(new),
        max(lengths),
    )


def to_cuda(value: Any) -> Any:
    """A Step or KvCache with its tensors on the device."""
    moved = [getattr(value, field.name) for field in fields(value)]
    moved = [
        tuple(t.cuda() for t in m)
        if isinstance(m, tuple)
        else m.cuda()
        if hasattr(m, "cuda")
        else m
        for m in moved
    ]
    return type(value)(*moved)


@pytest.mark.parametrize("kind", ["glm4v_moe", "glm4v"])
@pytest.mark.parametrize("fp8", [False, True])
def test_prefill_and_decoding_steps_of_a_whole_model(kind: str, fp8: bool) -> None:
    config = read_config(tiny_config(kind))
    names = {"attention.qkv", "attention.o", "mlp.gate_up", "mlp.down", "moe.experts"}
    with torch.device("meta"):
        chosen = frozenset(f"layers.{i}.{n}" for i in range(3) for n in names if fp8)
        model = Glm4v(config, Mesh.single(), chosen)
    model.to_empty(device="cpu")
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        values = randn(*parameter.shape, seed=seed)
        if name.endswith("scale"):
            values = values.abs() / 1000
        elif parameter.dtype == torch.float8_e4m3fn:
            values = values * 100
        elif parameter.ndim > 1:
            values = values / parameter.shape[-1] ** 0.5
        keep = parameter.dtype == torch.float8_e4m3fn or name.endswith(("scale", "router.bias"))
        parameter.data = values.to(parameter.dtype if keep else torch.bfloat16)
    shape = (64, 2, 2, 16, config.text.head_dim)
    layers = [torch.full((*shape[:4], shape[4]), torch.nan, dtype=torch.bfloat16)]
    kv = KvCache(tuple(layers[0].clone() for _ in range(config.text.num_layers)), None, 16)
    there_kv = to_cuda(kv)
    lengths = [33, 7, 50]
    prefill = make_step(lengths, lengths, 64, 16)
    decoding = make_step([length + 1 for length in lengths], [1, 1, 1], 64, 16)
    torch.manual_seed(0)
    tokens = [torch.randint(0, 256, (sum(lengths),)), torch.randint(0, 256, (3,))]
    expected = [
        model.logits(model.decode(model.embed(ids), step, kv))
        for ids, step in zip(tokens, (prefill, decoding), strict=True)
    ]
    model.to("cuda")
    on = [
        (ids.cuda(), to_cuda(step)) for ids, step in zip(tokens, (prefill, decoding), strict=True)
    ]
    got = [model.logits(model.decode(model.embed(on[0][0]), on[0][1], there_kv))]
    with no_host_sync():
        got.append(model.logits(model.decode(model.embed(on[1][0]), on[1][1], there_kv)))
    for ours, theirs in zip(got, expected, strict=True):
        # a router may choose another expert where two scores nearly tie: most rows must agree
        error = (ours.cpu() - theirs).norm(dim=-1) / theirs.norm(dim=-1)
        assert error.median() < (0.1 if fp8 else 0.03)
