"""What FP8 products lose by how they add up, against what quantising loses anyway.

    python -m benchmarks.kernels.accumulation

Hopper's tensor cores keep about 14 bits of a sum of FP8 products; "fast" adds all of a row there,
"exact" moves partial sums to float32 registers on the way. Errors are relative to the size of the
whole result; "noise" is the error of exact sums of quantised factors against the factors before.
"""

import torch

from benchmarks.kernels.cases import Inputs
from benchmarks.kernels.measure import microseconds
from glimt.kernels import QuantizedRows, choice, fp8_linear, reference

SIZES = [(2816, 4096), (14336, 4096), (4096, 1408), (4096, 10944), (4096, 12288)]
ROWS = [1, 16, 64, 256, 2048]


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.float() - expected).norm() / expected.norm()).item()


def main() -> None:
    device = torch.device("cuda")
    inputs = Inputs(device, torch.bfloat16)
    print(f"torch {torch.__version__} on {torch.cuda.get_device_name()}")
    print(f"{'outputs x inputs':>17} {'rows':>5} {'noise':>8}   error and us of: fast, exact, ours")
    for num_out, num_in in SIZES:
        original = inputs.randn(1, num_out, num_in, std=0.02)
        weight, scale = reference.quantize_rows(original)
        for count in ROWS:
            x = inputs.randn(2, count, num_in)
            rows = QuantizedRows(x, *choice.quantize_rows(x))
            quantised = reference.fp8_linear(rows.q_TI.float() * rows.scale_T1, weight, scale[:, 0])
            noise = error(quantised, x.float() @ original.float().T)
            parts = []
            for is_fast in (True, False):

                def torchs(is_fast: bool = is_fast) -> torch.Tensor:
                    return torch._scaled_mm(
                        rows.q_TI,
                        weight.t(),
                        scale_a=rows.scale_T1,
                        scale_b=scale.t(),
                        out_dtype=torch.bfloat16,
                        use_fast_accum=is_fast,
                    )

                try:
                    took = microseconds(torchs, [()], device, 5)
                    parts.append(f"{error(torchs(), quantised):.1e} {took:8.1f}")
                except RuntimeError as failure:
                    parts.append(f"{type(failure).__name__:>16}")

            def ours() -> torch.Tensor:
                return fp8_linear(rows, weight, scale[:, 0].contiguous())

            took = microseconds(ours, [()], device, 5)
            parts.append(f"{error(ours(), quantised):.1e} {took:8.1f}")
            print(f"{num_out:>8}x{num_in:<8} {count:5d} {noise:8.1e}   " + "   ".join(parts))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
