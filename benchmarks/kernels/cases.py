"""One case for each operation, product and number of rows: inputs, definition, bytes, FLOPs.

Definitions get activations in float32, so that what is measured against is exact.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.shapes import Shape, linear_products
from glimt import kernels
from glimt.kernels import (
    reference,
    reference_attention,
    reference_experts,
    sampling,
)
from glimt.kernels.draws import add_noise_, mask_top_k_top_p_

FP8 = torch.float8_e4m3fn
FP8_SUM = 0.05  # tensor cores keep about 14 bits of a sum of FP8 products; see accumulation.py
CONTEXT = 1600  # tokens of every decoding row
PAGE = 64


@dataclass(frozen=True)
class Case:
    """`make(n)` gives the n-th set of inputs, which shares no small tensor with the others."""

    op: str
    what: str
    rows: int
    make: Callable[[int], tuple[Any, ...]]
    run: Callable[..., Any]
    define: Callable[..., Any]
    num_bytes: int  # read and written once each
    flops: int
    tolerance: float = 0.01  # of the outputs' size, as a whole
    own_bytes: int = 0  # of what each set of inputs has for itself
    check: Callable[..., Any] | None = None  # gives what `define` gives, where `run` gives less


class Inputs:
    """Random tensors on a device, the same for the same seed."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    def randn(self, seed: int, *size: int, std: float = 1.0) -> Tensor:
        """Of the compute type."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(size, generator=generator, device=self.device).mul_(std).to(self.dtype)

    def fp8(self, seed: int, *size: int) -> tuple[Tensor, Tensor]:
        """e4m3 of the whole range and a scale for each row: weights of about 0.02.

        Not of the same numbers as `randn` of this seed: rows multiplied by themselves lose most.
        """
        out = torch.empty(size, dtype=FP8, device=self.device)
        generator = torch.Generator(self.device).manual_seed((1 << 32) + seed)
        flat = out.view(-1)
        for start in range(0, flat.numel(), 1 << 26):
            part = flat[start : start + (1 << 26)]
            noise = torch.randn(part.shape, generator=generator, device=self.device)
            part.copy_(noise.mul_(112.0).clamp_(-448, 448))
        scale = torch.rand(size[:-1], generator=generator, device=self.device) * 1e-4 + 1e-4
        return out, scale

    def ints(self, seed: int, high: int, *size: int) -> Tensor:
        """int64 in [0, high)."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randint(0, high, size, generator=generator, device=self.device)


def all_cases(shape: Shape, rows: int, inputs: Inputs) -> Iterator[Case]:
    """Every operation of a decoder layer, the LM head and the draw, for so many tokens."""
    yield from _row_cases(shape, rows, inputs)
    yield from _linear_cases(shape, rows, inputs)
    if shape.num_experts:
        yield from _moe_cases(shape, rows, inputs)
    yield from _attention_cases(shape, rows, inputs)
    yield from _draw_cases(shape, rows, inputs)


def _wide(*values: Any) -> tuple[Any, ...]:
    """Activations in float32; FP8 and integers stay."""
    return tuple(
        v.float() if isinstance(v, Tensor) and v.dtype in (torch.bfloat16, torch.float16) else v
        for v in values
    )


def _row_cases(shape: Shape, rows: int, inputs: Inputs) -> Iterator[Case]:
    width, item = shape.hidden, inputs.dtype.itemsize
    row = rows * width * item

    def norm(n: int) -> tuple[Any, ...]:
        return inputs.randn(n, rows, width), inputs.randn(n + 99, width), 1e-5

    def add(n: int) -> tuple[Any, ...]:
        x, weight, eps = norm(n)
        return x, inputs.randn(n + 50, rows, width), weight, eps

    def narrow(n: int) -> tuple[Any, ...]:
        return (inputs.randn(n, rows, width),)

    def gates(n: int) -> tuple[Any, ...]:
        return (inputs.randn(n, rows, 2 * shape.dense_width),)

    yield Case(
        "rms_norm", f"{width}", rows, norm, kernels.rms_norm,
        lambda *a: reference.rms_norm(*_wide(*a)), 2 * row, 0, own_bytes=row,
    )  # fmt: skip
    yield Case(
        "add_rms_norm", f"{width}", rows, add, kernels.add_rms_norm,
        lambda x, d, w, eps: reference.add_rms_norm((x + d).float(), 0 * d.float(), w.float(), eps),
        4 * row, 0, own_bytes=2 * row,
    )  # fmt: skip
    yield Case(
        "add_rms_norm_quantize", f"{width}", rows, add, kernels.add_rms_norm_quantize,
        reference.add_rms_norm_quantize, 3 * row + rows * width, 0, 0.03, own_bytes=2 * row,
    )  # fmt: skip
    yield Case(
        "quantize_rows", f"{width}", rows, narrow, kernels.quantize_rows,
        reference.quantize_rows, row + rows * width, 0, 0.03, own_bytes=row,
    )  # fmt: skip
    halves = rows * shape.dense_width * item
    yield Case(
        "silu_mul", f"{shape.dense_width}", rows, gates, kernels.silu_mul,
        lambda x: reference.silu_mul(x.float()), 3 * halves, 0, own_bytes=2 * halves,
    )  # fmt: skip
    yield Case(
        "silu_mul_quantize", f"{shape.dense_width}", rows, gates, kernels.silu_mul_quantize,
        reference.silu_mul_quantize, 2 * halves + halves // item, 0, 0.03, own_bytes=2 * halves,
    )  # fmt: skip


def _linear_cases(shape: Shape, rows: int, inputs: Inputs) -> Iterator[Case]:
    item = inputs.dtype.itemsize
    for name, (num_out, num_in) in linear_products(shape).items():

        def make(n: int, num_out: int = num_out, num_in: int = num_in) -> tuple[Any, ...]:
            return inputs.randn(n, rows, num_in), *inputs.fp8(n, num_out, num_in)

        num_bytes = num_out * (num_in + 4) + rows * item * (num_in + num_out)
        yield Case(
            "fp8_linear", f"{name} {num_out}x{num_in}", rows, make, kernels.fp8_linear,
            lambda x, w, s: reference.fp8_linear(x.float(), w, s), num_bytes,
            2 * rows * num_out * num_in, FP8_SUM, own_bytes=num_bytes,
        )  # fmt: skip

    def head(n: int) -> tuple[Any, ...]:
        weight = inputs.randn(n, shape.vocab, shape.hidden, std=0.02)
        return inputs.randn(n, rows, shape.hidden), weight

    num_bytes = item * (shape.vocab * shape.hidden + rows * (shape.hidden + shape.vocab))
    yield Case(
        "linear", f"head {shape.vocab}x{shape.hidden}", rows, head, kernels.linear,
        lambda x, w: reference.linear(x.float(), w.float()), num_bytes,
        2 * rows * shape.vocab * shape.hidden, own_bytes=num_bytes,
    )  # fmt: skip


def _moe_cases(shape: Shape, rows: int, inputs: Inputs) -> Iterator[Case]:
    experts, width, hidden = shape.num_experts, shape.expert_width, shape.hidden
    chosen, item = shape.experts_per_token, inputs.dtype.itemsize

    def router(n: int) -> tuple[Any, ...]:
        weight = inputs.randn(n, experts, hidden, std=hidden**-0.5)
        return inputs.randn(n, rows, hidden), weight, torch.zeros(experts, device=inputs.device)

    rule = {
        "num_experts_per_token": chosen,
        "num_groups": 1,
        "num_groups_per_token": 1,
        "norm_topk_prob": True,
        "scale": 1.0,
    }
    yield Case(
        "route", f"{experts}x{hidden}", rows, router,
        lambda *a: _spread(kernels.route(*a, **rule), experts),
        lambda *a: _spread(reference_experts.route(*a, **rule), experts),
        item * hidden * (experts + rows), 2 * rows * hidden * experts, 0.05,
        own_bytes=item * hidden * experts,
    )  # fmt: skip
    weights: list[Tensor] = []
    shared: list[Tensor] = []

    def moe(n: int) -> tuple[Any, ...]:
        if not weights:  # every set of inputs has other experts of the same weights
            weights.extend(inputs.fp8(1, experts, 2 * width, hidden))
            weights.extend(inputs.fp8(2, experts, hidden, width))
        scores = torch.rand(rows, experts, device=inputs.device)
        ids = scores.topk(chosen, dim=-1).indices
        shares = torch.full((rows, chosen), 1 / chosen, device=inputs.device)
        return inputs.randn(n, rows, hidden), shares, ids, *weights

    def whole(n: int) -> tuple[Any, ...]:
        x, shares, ids, *_ = moe(n)
        if not shared:
            shared.extend(inputs.fp8(3, 2 * width, hidden))
            shared.extend(inputs.fp8(4, hidden, width))
        return x, shares, ids, kernels.Fp8Mlp(*weights), kernels.Fp8Mlp(*shared)

    touched = experts * (1 - (1 - chosen / experts) ** rows)
    own = int(touched * 3 * width * hidden)
    activations, flops = 2 * item * rows * hidden, 6 * rows * width * hidden
    yield Case(
        "fp8_grouped_experts", f"{experts} of {width}", rows, moe, kernels.fp8_grouped_experts,
        lambda x, *a: reference_experts.fp8_grouped_experts(x.float(), *a), own + activations,
        chosen * flops, FP8_SUM, own_bytes=own,
    )  # fmt: skip
    yield Case(
        "fp8_moe", f"{experts} of {width}, and a shared one", rows, whole, kernels.fp8_moe,
        lambda x, *a: reference_experts.fp8_moe(x.float(), *a),
        own + 3 * width * hidden + activations, (chosen + 1) * flops, FP8_SUM, own_bytes=own,
    )  # fmt: skip


def _spread(routed: tuple[Tensor, Tensor], num_experts: int) -> Tensor:
    """[T, E] weights: the order in which experts are given does not matter."""
    weights_TK, experts_TK = routed
    dense_TE = torch.zeros(len(weights_TK), num_experts, device=weights_TK.device)
    return dense_TE.scatter_(1, experts_TK.long(), weights_TK)


def _attention_cases(shape: Shape, rows: int, inputs: Inputs) -> Iterator[Case]:
    heads, groups, dim, item = shape.heads, shape.kv_heads, shape.head_dim, inputs.dtype.itemsize
    context = CONTEXT if inputs.device.type == "cuda" else 40
    pages = -(-context // PAGE)
    for kind in ("", " e4m3") if rows <= 256 else ():
        kv_item = 1 if kind else item

        def decode(n: int, kind: str = kind) -> tuple[Any, ...]:
            kv, scale = _cache(inputs, n, rows * pages, groups, dim, kind)
            table = torch.randperm(rows * pages, device=inputs.device).view(rows, pages).int()
            starts = torch.arange(rows + 1, dtype=torch.int32, device=inputs.device)
            lengths = torch.full((rows,), context, dtype=torch.int32, device=inputs.device)
            return inputs.randn(n, rows, heads, dim), kv, table, starts, lengths, scale

        num_bytes = rows * (2 * context * groups * dim * kv_item + 2 * heads * dim * item)
        yield Case(
            "paged_attention", f"{heads}/{groups} heads, {context} tokens{kind}", rows, decode,
            lambda q, kv, table, starts, lengths, scale: kernels.paged_attention(
                q, kv, table, starts, lengths, max_query_len=1, max_context_len=context,
                scale_P2GS=scale,
            ),
            _attend, num_bytes, 4 * rows * context * heads * dim, 0.02, own_bytes=num_bytes,
        )  # fmt: skip
    yield from _rope_cases(shape, rows, inputs)
    if rows < 256:
        return

    def chunk(n: int) -> tuple[Any, ...]:
        kv, _ = _cache(inputs, n, -(-rows // PAGE), groups, dim, "")
        table = torch.randperm(len(kv), device=inputs.device).view(1, -1).int()
        starts = torch.tensor([0, rows], dtype=torch.int32, device=inputs.device)
        return inputs.randn(n, rows, heads, dim), kv, table, starts, starts[1:].clone(), None

    num_bytes = rows * dim * item * (2 * heads + 2 * groups)
    yield Case(
        "paged_attention", f"{heads}/{groups} heads, a prompt", rows, chunk,
        lambda q, kv, table, starts, lengths, scale: kernels.paged_attention(
            q, kv, table, starts, lengths, max_query_len=rows, max_context_len=rows
        ),
        _attend, num_bytes, 2 * rows * rows * heads * dim, 0.02, own_bytes=num_bytes,
    )  # fmt: skip

    def image(n: int) -> tuple[Any, ...]:
        size = (rows, shape.vision_heads, shape.vision_width // shape.vision_heads)
        return tuple(inputs.randn(3 * n + i, *size) for i in range(3))

    yield Case(
        "segment_attention", f"{shape.vision_heads} heads, an image", rows, image,
        lambda q, k, v: kernels.segment_attention(q, k, v, [rows]),
        lambda q, k, v: reference_attention.segment_attention(*_wide(q, k, v), [rows]),
        4 * rows * shape.vision_width * item, 4 * rows * rows * shape.vision_width, 0.02,
        own_bytes=3 * rows * shape.vision_width * item,
    )  # fmt: skip


def _rope_cases(shape: Shape, rows: int, inputs: Inputs) -> Iterator[Case]:
    heads, groups, dim = shape.heads, shape.kv_heads, shape.head_dim
    for kind in ("", " e4m3"):

        def make(n: int, kind: str = kind) -> tuple[Any, ...]:
            pages = -(-rows // PAGE)
            kv, scale = _cache(inputs, n, pages, groups, dim, kind)
            angles = inputs.randn(n, rows, dim // 4).float()
            slots = torch.randperm(pages * PAGE, device=inputs.device)[:rows]
            vectors = inputs.randn(n, rows, heads + 2 * groups, dim)
            return vectors, angles.cos(), angles.sin(), kv, slots, scale

        def define(x: Tensor, cos: Tensor, sin: Tensor, kv: Tensor, *a: Any) -> list[Tensor]:
            slots, scale = a
            copies = kv.clone(), None if scale is None else scale.clone()
            wide = (x.float(), cos, sin, copies[0], slots, copies[1])
            q = reference_attention.turn_and_write_kv(*wide, interleaved=True)
            return [q, _stored(*copies)]

        def run(*given: Any) -> list[Tensor]:
            q = kernels.turn_and_write_kv(*given, interleaved=True)
            return [q, _stored(given[3], given[5])]

        def turn(*given: Any) -> Tensor:
            return kernels.turn_and_write_kv(*given, interleaved=True)

        size = rows * (2 * heads + 3 * groups) * dim * inputs.dtype.itemsize
        yield Case(
            "turn_and_write_kv", f"{heads}/{groups} heads{kind}", rows, make, turn, define, size,
            0, 0.03, own_bytes=size, check=run,
        )  # fmt: skip


def _stored(kv: Tensor, scale: Tensor | None) -> Tensor:
    """The cache's numbers in float32."""
    if scale is None:
        return kv.float()
    return kv.float() * scale[..., None]


def _cache(
    inputs: Inputs, seed: int, num_pages: int, groups: int, dim: int, kind: str
) -> tuple[Tensor, Tensor | None]:
    if kind:
        return inputs.fp8(seed, num_pages, 2, groups, PAGE, dim)
    return inputs.randn(seed, num_pages, 2, groups, PAGE, dim), None


def _attend(
    q_TNH: Tensor, kv: Tensor, table: Tensor, starts: Tensor, lengths: Tensor, scale: Tensor | None
) -> Tensor:
    """The definition, row by row in float32."""
    out_TNH = torch.empty(q_TNH.shape, device=q_TNH.device)
    bounds = starts.tolist()
    for row, length in enumerate(lengths.tolist()):
        pages = kv[table[row].long()] if scale is None else _dequantised(kv, scale, table[row])
        k_NLH, v_NLH = (
            pages[:, i].float().transpose(0, 1).flatten(1, 2)[:, :length]
            .repeat_interleave(q_TNH.shape[1] // kv.shape[2], 0) for i in (0, 1)
        )  # fmt: skip
        q_NTH = q_TNH[bounds[row] : bounds[row + 1]].float().transpose(0, 1)
        count = q_NTH.shape[1]
        later = torch.ones(count, length, dtype=torch.bool, device=q_TNH.device)
        later = later.triu(length - count + 1)
        scores_NTL = (q_NTH @ k_NLH.transpose(1, 2)) * q_TNH.shape[2] ** -0.5
        weights_NTL = scores_NTL.masked_fill(later, float("-inf")).softmax(-1)
        out_TNH[bounds[row] : bounds[row + 1]] = (weights_NTL @ v_NLH).transpose(0, 1)
    return out_TNH


def _dequantised(kv: Tensor, scale: Tensor, pages: Tensor) -> Tensor:
    values = kv.view(torch.uint8)[pages.long()].view(kv.dtype).float()
    return values * scale[pages.long(), ..., None]


def _draw_cases(shape: Shape, rows: int, inputs: Inputs) -> Iterator[Case]:
    if rows > 256:
        return
    vocab, size = shape.vocab, 4 * rows * shape.vocab

    def logits(n: int) -> tuple[Any, ...]:
        return (inputs.randn(n, rows, vocab, std=3.0).float(), inputs.ints(n, 1 << 40, rows))

    def greedy(x: Tensor, seed: Tensor) -> Tensor:
        return x.max(dim=1).values

    def random(x: Tensor, seed: Tensor) -> Tensor:
        scores = x / 0.8
        add_noise_(scores, seed, seed, torch.ones_like(seed, dtype=torch.bool))
        return scores.max(dim=1).values

    def random_as_defined(x: Tensor, seed: Tensor) -> Tensor:
        return (x / 0.8 + sampling.gumbel_noise(seed, seed, vocab)).max(dim=1).values

    def nucleus(x: Tensor, seed: Tensor) -> Tensor:
        scores = x.clone()
        off = torch.full_like(seed, vocab)
        share = torch.full(seed.shape, 0.9, device=seed.device)
        mask_top_k_top_p_(scores, off, share, vocab)
        add_noise_(scores, seed, seed, torch.ones_like(seed, dtype=torch.bool))
        return scores.max(dim=1).values

    def few(x: Tensor, seed: Tensor) -> Tensor:
        scores = x.clone()
        k, share = torch.full_like(seed, 50), torch.full(seed.shape, 0.9, device=seed.device)
        mask_top_k_top_p_(scores, k, share, 64)
        add_noise_(scores, seed, seed, torch.ones_like(seed, dtype=torch.bool))
        return scores.max(dim=1).values

    draws = (
        ("greedy", greedy, greedy),
        ("random", random, random_as_defined),
        ("top_p", nucleus, nucleus),
        ("top_k 50, top_p", few, few),
    )
    for name, draw, define in draws:
        yield Case(
            "draw", f"{name} of {vocab}", rows, logits, draw, define, size, 0, own_bytes=size
        )  # fmt: skip
