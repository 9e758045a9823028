"""What the kernels become on Hopper, found out without one: the launches of a call, compiled.

An operation is called with tensors that have no memory ("meta"). Its launches are caught before
they reach a driver, and compiled for sm_90 as the launcher would, with the same constants and the
same knowledge of what is a multiple of 16.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

HOPPER = GPUTarget("cuda", 90, 32)
_DUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Launch:
    """A kernel, its arguments by name, and the compiler's options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class Binary:
    """`stack_bytes`: what registers were spilled to, and more."""

    name: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    sass: str

    def count(self, instruction: str) -> int:
        """How often an instruction (the start of its name, dots included) occurs."""
        return len(re.findall(rf"\s{re.escape(instruction)}[.\s]", self.sass))


@contextmanager
def caught_launches() -> Iterator[list[Launch]]:
    """Within, kernels are not launched but noted."""
    caught: list[Launch] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        arguments = dict(zip(kernel.arg_names, args, strict=False))
        arguments |= {name: named.pop(name) for name in kernel.arg_names if name in named}
        caught.append(Launch(kernel, arguments, named))

    with mock.patch.object(JITFunction, "run", run):
        yield caught


def compile_launch(launch: Launch) -> Binary:
    """The binary that the launch would run. Raises what the compiler raises."""
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        may_specialize = not parameter.do_not_specialize
        is_one = type(value) is int and value == 1 and may_specialize
        if parameter.is_constexpr or value is None or is_one:
            signature[parameter.name], constants[(place,)] = "constexpr", value
            continue
        signature[parameter.name] = _type(value)
        if isinstance(value, TensorDescriptor):
            continue
        is_multiple = value.data_ptr() % 16 == 0 if isinstance(value, Tensor) else value % 16 == 0
        if not isinstance(value, float) and is_multiple and may_specialize:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=HOPPER, options=launch.options)
    return _inspect(compiled)


def binaries(call: Callable[[], object]) -> list[Binary]:
    """What all launches of a call run."""
    with caught_launches() as launches:
        call()
    return [compile_launch(launch) for launch in launches]


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + _TYPES[value.dtype]
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{_TYPES[value.base.dtype]}{list(value.block_shape)}>"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _inspect(compiled: Any) -> Binary:
    folder = Path(os.environ["TRITON_CACHE_DIR"])
    file = folder / f"{compiled.metadata.hash}.cubin"
    file.write_bytes(compiled.asm["cubin"])
    told = subprocess.run(
        [_DUMP, "-res-usage", "-sass", file], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    registers, stack = (re.search(rf"{name}:(\d+)", told) for name in ("REG", "STACK"))
    if registers is None or stack is None:
        raise ValueError(f"cuobjdump does not tell the registers: {told[:2000]}")
    return Binary(
        compiled.metadata.name,
        int(registers[1]),
        int(stack[1]),
        compiled.metadata.shared,
        told,
    )
