"""What FP8 products lose by how they add up, against what quantising loses anyway.

    python -m benchmarks.kernels.accumulation

Hopper's tensor cores keep about 14 bits of a sum of FP8 products; "fast" adds all of a row there,
"exact" moves partial sums to float32 registers on the way. Errors are relative to the size of the
whole result; "noise" is the error of exact sums of quantised factors against the factors before.
"""

from functools import partial

import torch
from torch import Tensor

from benchmarks.kernels.cases import Inputs
from benchmarks.kernels.measure import microseconds
from glimt.kernels import QuantizedRows, choice, fp8_linear, reference

SIZES = [(2816, 4096), (14336, 4096), (4096, 1408), (4096, 10944), (4096, 12288)]
ROWS = [1, 16, 64, 256, 2048]


def error(got: Tensor, expected: Tensor) -> float:
    return ((got.float() - expected).norm() / expected.norm()).item()


def line(inputs: Inputs, num_out: int, num_in: int, count: int) -> str:
    """One line of the table."""
    original = inputs.randn(1, num_out, num_in, std=0.02)
    weight, scale = reference.quantize_rows(original)
    x = inputs.randn(2, count, num_in)
    rows = QuantizedRows(x, *choice.quantize_rows(x))
    true = (rows.q_TI.float() @ weight.float().T) * rows.scale_T1 * scale.T
    noise = error(true, x.float() @ original.float().T)

    def torchs(is_fast: bool) -> Tensor:
        return torch._scaled_mm(
            rows.q_TI,
            weight.t(),
            scale_a=rows.scale_T1,
            scale_b=scale.t(),
            out_dtype=torch.bfloat16,
            use_fast_accum=is_fast,
        )

    ours = partial(fp8_linear, rows, weight, scale[:, 0].contiguous())
    parts = []
    for run in (partial(torchs, True), partial(torchs, False), ours):
        try:
            took = microseconds(run, [()], inputs.device, 5)
            parts.append(f"{error(run(), true):.1e} {took:8.1f}")
        except RuntimeError as failure:
            parts.append(f"{type(failure).__name__:>16}")
    return f"{num_out:>8}x{num_in:<8} {count:5d} {noise:8.1e}   " + "   ".join(parts)


def main() -> None:
    inputs = Inputs(torch.device("cuda"), torch.bfloat16)
    print(f"torch {torch.__version__} on {torch.cuda.get_device_name()}")
    print(f"{'outputs x inputs':>17} {'rows':>5} {'noise':>8}   error and us of: fast, exact, ours")
    for num_out, num_in in SIZES:
        for count in ROWS:
            print(line(inputs, num_out, num_in, count), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
