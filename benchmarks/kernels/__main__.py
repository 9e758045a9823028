"""Every operation of `glimt.kernels` at the models' sizes: right, and how fast.

    python -m benchmarks.kernels                       all, at 1 … 2048 tokens, 106B on one GPU
    python -m benchmarks.kernels --only fp8_linear --rows 1 8 --models 106b:1 106b:2 9b
    python -m benchmarks.kernels --only paged_attention --rows 67 82
    python -m benchmarks.kernels --quick               few sizes, few rounds
    python -m benchmarks.kernels --tune tiles.json --seconds 140   fastest tiles (docs/kernels.md)
    python -m benchmarks.kernels --device cpu --models tiny --rows 1 3    whether it runs

Run it from the repository. Each case is first compared with its definition, with poisoned
memory; then timed over sets of inputs that together are larger than the cache. `share` is of the
time that the bytes or the FLOPs alone would take (4.54 TB/s read and 1330 TFLOP/s FP8, measured on
an H200; --bandwidth for other cards). Ends with 1 if an operation is wrong.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.cases import Case, Inputs, all_cases
from benchmarks.kernels.compilers import Compilers
from benchmarks.kernels.jobs import all_jobs, jobs_to_compile
from benchmarks.kernels.measure import error_of, input_sets, microseconds
from benchmarks.kernels.shapes import shape_of
from benchmarks.kernels.tune import Tuner, compile_part
from benchmarks.switches import switch, switches_of

ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 2048]
QUICK_ROWS = [1, 16, 64, 2048]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="*", help="operations, or parts of a case's name")
    parser.add_argument("--models", nargs="*", help="106b:1 (without --tune) 106b:2 9b tiny …")
    parser.add_argument("--rows", type=int, nargs="*")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--switches", default="", help="of benchmarks/switches.py")
    parser.add_argument("--no-check", action="store_true", help="time only")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--bandwidth", type=float, default=4.54, help="TB/s, of reading")
    parser.add_argument("--tflops", type=float, default=1330.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tune", type=Path, metavar="FILE", help="write the table of tiles there")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="to --tune in")
    parser.add_argument("--compilers", type=int, default=14, help="processes, of --tune")
    parser.add_argument("--compile-part", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen(options: argparse.Namespace, inputs: Inputs) -> Iterator[tuple[str, Case]]:
    rows = options.rows or (QUICK_ROWS if options.quick else ROWS)
    for name in options.models or ["106b:1"]:
        for count in rows:
            for case in all_cases(shape_of(name), count, inputs):
                full = f"{case.op} {case.what}"
                if not options.only or any(part in full for part in options.only):
                    yield name, case


def measured(name: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """One line of the table."""
    device = torch.device(options.device)
    line: dict[str, Any] = {"model": name, "op": case.op, "what": case.what, "rows": case.rows}
    try:
        if not options.no_check:
            line["error"] = error_of(case)
            line["is_right"] = line["error"] <= case.tolerance
        sets = input_sets(case, options.quick or options.device == "cpu")
        line["us"] = microseconds(case.run, sets, device, 3 if options.quick else 10)
    except Exception as error:  # one broken kernel must not hide the others
        return line | {"failed": f"{type(error).__name__}: {error}"[:300], "is_right": False}
    line["gb_per_s"] = case.num_bytes / line["us"] / 1000
    line["tflops"] = case.flops / line["us"] / 1e6
    floor = max(case.num_bytes / options.bandwidth, case.flops / options.tflops) / 1e6
    line["share"] = floor / line["us"]
    return line


def show(line: dict[str, Any]) -> None:
    head = f"{line['model']:8} {line['op'][:22]:22} {line['what'][:34]:34} {line['rows']:5d}"
    if "failed" in line:
        print(f"{head}  FAILED {line['failed'][:120]}", flush=True)
        return
    error = f"{line['error']:8.1e}" if "error" in line else f"{'-':>8}"
    mark = "" if line.get("is_right", True) else "  WRONG"
    print(
        f"{head} {line['us']:9.1f} {line['gb_per_s']:7.0f} {line['tflops']:7.1f} "
        f"{100 * line['share']:5.0f}% {error}{mark}",
        flush=True,
    )


def tune(options: argparse.Namespace, inputs: Inputs) -> None:
    """Write the table of tiles, or compile for whoever does."""
    if options.compile_part is not None:
        compile_part(jobs_to_compile(options), options.compile_part, options.compilers)
        return
    jobs = all_jobs(options.models, options.rows, options.only, inputs, options.quick)
    with Compilers(sys.argv[1:], options.compilers) as compilers:
        tuner = Tuner(options.tune, inputs.device, options.seconds, compilers)
        tuner.run(jobs)
    print(tuner.report(jobs))


def main() -> int:
    options = arguments()
    switch(switches_of(options.switches))
    device = torch.device(options.device)
    inputs = Inputs(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__} on {where}")
    with torch.inference_mode():
        if options.tune:
            tune(options, inputs)
            return 0
        print(
            f"{'model':8} {'operation':22} {'of':34} {'rows':>5} {'us':>9} {'GB/s':>7} "
            f"{'TFLOP/s':>7} {'share':>6} {'error':>8}"
        )
        lines = []
        for name, case in chosen(options, inputs):
            lines.append(measured(name, case, options))
            show(lines[-1])
    if options.json:
        result = {"device": where, "torch": torch.__version__, "lines": lines}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    wrong = [line for line in lines if not line.get("is_right", True)]
    print(f"{len(lines)} cases, {len(wrong)} wrong or failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
