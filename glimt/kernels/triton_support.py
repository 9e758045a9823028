"""What all Triton kernels share: rounding, and whether a device can run them.

Triton's interpreter (TRITON_INTERPRET=1) runs the kernels on a CPU for the tests. It truncates
float32 to bfloat16 and misrounds e4m3 (measured on 3.6 and 3.7: about 2 % of values off by a factor
of two), so under it the helpers here round by themselves; a GPU rounds to nearest even anyway.
"""

import functools
import logging
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

logger = logging.getLogger(__name__)

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

_MIN_CAPABILITY = (9, 0)  # Hopper; what the tiles are made for


@triton.jit
def to_bf16(x):
    """float32 -> bfloat16, to nearest even."""
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(tl.bfloat16)


@triton.jit
def to_fp8(x):
    """float32 -> e4m3, to nearest even, clamped to ±448."""
    x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
        normal = bits.to(tl.float32, bitcast=True)
        subnormal = (x + 24576.0) - 24576.0  # 1.5 · 2^14: float32 is 2^-9 apart there
        x = tl.where(tl.abs(x) < 0.015625, subnormal, normal)
    return x.to(tl.float8e4nv)


@triton.jit
def row_scale(largest):
    """The scale of a row whose largest magnitude this is; see `reference.quantize_rows`."""
    return tl.maximum(tl.div_rn(largest, 448.0), 1.0 / (448.0 * 512.0))


@triton.jit
def dot(a, b, total):
    """total + a b, in float32; the interpreter cannot multiply bfloat16 or e4m3.

    Hopper's sums of e4m3 products keep about 14 bits, rounded towards zero: products that agree
    in sign lose 6 % if they are 4096, 16 % if 12288 (measured). So it sums 128 at a time.
    """
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    if a.dtype == tl.float8e4nv:
        return tl.dot(a, b, total, max_num_imprecise_acc=128)
    return tl.dot(a, b, total)


@triton.jit
def stream(
    weight_ptr,
    x_ptr,
    output,
    row,
    is_output,
    is_row,
    inverse,
    num_inputs: tl.constexpr,
    block_i: tl.constexpr,
    part=0,
    parts: tl.constexpr = 1,
):
    """W x^T in float32 [outputs, rows], or one of several `parts` of its sum over the inputs.

    `output` and `row` number the rows of the two matrices, which both are num_inputs wide. Weights
    are read once, so they are the first to leave the cache. With `inverse` scales of its rows, x is
    bfloat16 and becomes e4m3 here.
    """
    steps: tl.constexpr = (num_inputs + block_i * parts - 1) // (block_i * parts)
    column = part * (steps * block_i) + tl.arange(0, block_i)
    w_at = weight_ptr + output.to(tl.int64)[:, None] * num_inputs + column[None, :]
    x_at = x_ptr + row.to(tl.int64)[None, :] * num_inputs + column[:, None]
    total = tl.zeros([output.shape[0], row.shape[0]], tl.float32)
    for step in range(steps):
        if num_inputs % (block_i * parts) == 0:
            w_mask = is_output[:, None]
            x_mask = is_row[None, :]
        else:
            is_input = column + step * block_i < num_inputs
            w_mask = is_output[:, None] & is_input[None, :]
            x_mask = is_row[None, :] & is_input[:, None]
        w = tl.load(w_at, mask=w_mask, other=0.0, eviction_policy="evict_first")
        x = tl.load(x_at, mask=x_mask, other=0.0)
        if inverse is not None:
            x = to_fp8(x.to(tl.float32) * inverse[None, :])
        total = dot(w, x, total)
        w_at += block_i
        x_at += block_i
    return total


@triton.jit
def fetch_ahead(ptr, count: tl.constexpr, block: tl.constexpr):
    """Have `count` numbers of two bytes, up to a `block`, come into the cache.

    The assembler may put off a reading until its value is wanted, but not this.
    """
    if not INTERPRETED:
        line = tl.arange(0, (block + 63) // 64) * 64  # of 128 bytes
        at = (ptr + tl.minimum(line, count - 1)).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at], tl.int32, is_pure=False, pack=1
        )


@triton.jit
def came_last(arrived_ptr, count):
    """Whether this program is the last of `count` to come here; it then sees what all have stored.

    `arrived_ptr`: an int32 that is 0 before the first comes, and 0 again after the last, for the
    next launch. What others stored must not be looked for in a processor's own cache (".cg").
    """
    tl.debug_barrier()  # one thread tells for all of them, after the last one's stores
    is_last = tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu") == count - 1
    if is_last:
        tl.store(arrived_ptr, 0)
    return is_last


@triton.jit
def _touch_kernel(out):
    tl.store(out + tl.program_id(0), 1.0)


@functools.cache
def works_on(device: torch.device) -> bool:
    """Whether Triton compiles and runs on this CUDA device: tried once, reported if not."""
    if torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        return False
    try:
        _touch_kernel[(1,)](torch.empty(1, device=device))
    except Exception as error:  # a missing C compiler or driver, an odd version
        logger.warning(
            "Triton does not work here, so plain torch operations are used, which are several"
            " times slower. Cause: %s: %s. Cure: a C compiler, and the triton of your torch.",
            type(error).__name__,
            error,
        )
        return False
    return True


_COMPILED: dict[tuple[Any, ...], Any] = {}


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    *arguments: Any,
    warps: int = 4,
    stages: int = 3,
    registers: int | None = None,
) -> None:
    """`kernel[grid](*arguments)` for arguments in order, at a fraction of the host's time.

    Triton looks at all arguments of each launch to find what it has compiled for them. Here the
    constants and types are enough: pointers are multiples of 16 (`fits`) unless they are read one
    number at a time, and no kernel is specialised for the values of its integers: those that must
    be known as multiples of something (strides) are constants. Up to so many `registers` for each
    thread are used as freely as waiting can be saved by them.
    """
    options = {"num_warps": warps, "num_stages": stages}
    if registers is not None:
        options["maxnreg"] = registers
    if INTERPRETED.value:
        kernel[grid](*arguments, **options)
        return
    constants, others = _places(kernel)
    key = (
        kernel,
        warps,
        stages,
        registers,
        arguments[0].device,
        *[arguments[place] for place in constants],
        *[getattr(arguments[place], "dtype", None) for place in others],
    )
    compiled = _COMPILED.get(key)
    if compiled is None:
        _COMPILED[key] = kernel[grid](*arguments, **options)
    else:
        compiled[grid](*arguments)


@functools.cache
def _places(kernel: Any) -> tuple[list[int], list[int]]:
    """Where a kernel's arguments are constants, and where not."""
    constants = [place for place, parameter in enumerate(kernel.params) if parameter.is_constexpr]
    return constants, [place for place in range(len(kernel.params)) if place not in constants]


def tiles_of(size: int, block: int) -> int:
    """How many blocks cover `size`; `triton.cdiv` takes two microseconds."""
    return -(-size // block)


def power_of_two(size: int) -> int:
    """The smallest that is not below `size` ≥ 1."""
    return 1 << (size - 1).bit_length()


def fits(*tensors: Tensor | None) -> bool:
    """Whether kernels may read these: dense rows at addresses that are multiples of 16 bytes."""
    return all(t is None or (t.is_contiguous() and t.data_ptr() % 16 == 0) for t in tensors)
