"""All that two GPUs have to show, correctness and speed, in a given time and the order of weight.

    python benchmarks/two_gpus.py --out build/two-gpus            six minutes at most
    python benchmarks/two_gpus.py --only tp2 exchange --seconds 120
    python benchmarks/two_gpus.py --device cpu                    whether all of it runs

Nothing else may use the GPUs: ranks that wait for each other in kernels would take turns with it.
Each piece is a command with a time of its own; one that hangs is ended with all its processes and
the next begins. What each printed is in a file of its own; the end of it is shown, and what is
wrong with it. Pieces that the time does not suffice for are named. Status 1 if anything is wrong.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEAST_S = 15.0  # a piece that gets less is left out
SHOWN_LINES = 14


@dataclass(frozen=True)
class Piece:
    """A command. `small` is what it is told besides where there are only CPUs; `must_say`: else it
    is wrong although it ended well.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    small: tuple[str, ...] = ()
    must_say: str = ""


def _tests(file: str, *more: str, marks: str = "gpu2") -> tuple[str, ...]:
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks, "--tb=short")
    return (*words, f"tests/parallel/{file}", *more)


def _steps(*more: str) -> tuple[str, ...]:
    words = ("benchmarks/dummy_model.py", "-tp", "2", "--requests", "1", "8", "64")
    return (*words, "--rounds", "5", "--tokens", "64", *more)


_TINY = "--model tiny --quantization none --max-model-len 256 --prompt 20 --tokens 6 --requests 1"
TINY = tuple(_TINY.split())
TINY_STEPS = (*TINY, "--device", "cpu", "--grid", "4", "6", "--rounds", "1")
CPU = ("--device", "cpu")
PIECES = (
    Piece("sums", _tests("test_ranks_on_gpus.py"), 75, must_say=" passed"),
    Piece("tp2", _steps(), 60, TINY_STEPS, must_say="fused with norms"),
    Piece(
        "tokens",
        _tests("test_on_two_gpus.py", "-k", "not without and not NCCL"),
        90,
        must_say=" passed",
    ),
    Piece(
        "dp2-ep",
        ("benchmarks/copies.py", "-ep", "--requests", "1", "64", "8", "--seconds", "50"),
        65,
        (*TINY, *CPU),
        must_say="requests of each copy",
    ),
    Piece(
        "shared",
        _tests("test_shared_experts_on_gpus.py", "-k", "with and graphs and not without or gather"),
        75,
        must_say=" passed",
    ),
    Piece("beside", _tests("test_beside.py", marks="gpu"), 30, must_say=" passed"),
    Piece(
        "exchange",
        ("benchmarks/expert_exchange.py",),
        45,
        ("--model", "tiny", "--rows", "1", "8", *CPU),
        must_say="DEALS_FROM",
    ),
    Piece("tp2-nccl", _steps("--disable-custom-all-reduce"), 50, TINY_STEPS),
    Piece("tp2-ep-data", _steps("-ep", "--mm-encoder-tp-mode", "data"), 50, TINY_STEPS),
    Piece("sums-by-size", ("benchmarks/all_reduce.py",), 40, ("--rows", "1", *CPU)),
    Piece(
        "dp2",
        ("benchmarks/copies.py", "--requests", "1", "64", "8", "--seconds", "50"),
        65,
        (*TINY, *CPU),
    ),
    Piece("draws", ("benchmarks/draws_over_gpus.py",), 40, ("--rows", "1", "--rounds", "1", *CPU)),
)


def run(piece: Piece, limit_s: float, out: Path, *, on_cpu: bool) -> str:
    """What is wrong with the piece; nothing, if all is well."""
    log, json = out / f"{piece.name}.txt", out / f"{piece.name}.json"
    command = [sys.executable, *piece.command, *(piece.small if on_cpu else ())]
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    if piece.command[0] == "-m":
        environment |= {"GLIMT_TEST_DEVICE": "cpu"} if on_cpu else {}
    else:
        command += ["--json", str(json)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        _end_all(process)
    said = log.read_text(errors="replace")
    print("\n".join(said.splitlines()[-SHOWN_LINES:]), flush=True)
    if status is None:
        return f"not done after {limit_s:.0f} s"
    if status:
        return f"exit status {status}"
    if piece.must_say not in said and not on_cpu:
        return f"it does not say {piece.must_say!r}"
    return ""


def _end_all(process: "subprocess.Popen[bytes]") -> None:
    """It and what it has started, which by itself ends with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> int:
    """One piece after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "two-gpus")
    parser.add_argument("--only", nargs="*", choices=[piece.name for piece in PIECES])
    parser.add_argument("--seconds", type=float, default=355.0, help="for all pieces together")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ends_s = time.monotonic() + options.seconds
    table = []
    for piece in PIECES:
        if options.only and piece.name not in options.only:
            continue
        limit_s = min(piece.limit_s, ends_s - time.monotonic())
        if limit_s < LEAST_S:
            table.append((piece.name, 0.0, "left out: the time is up"))
            continue
        print(f"== {piece.name}: {' '.join(piece.command)}", flush=True)
        started_s = time.monotonic()
        wrong = run(piece, limit_s, options.out.resolve(), on_cpu=options.device == "cpu")
        table.append((piece.name, time.monotonic() - started_s, wrong))
    lines = [f"{name:<14}{took_s:6.1f} s  {wrong or 'well'}" for name, took_s, wrong in table]
    (options.out / "summary.txt").write_text("\n".join([*lines, ""]))
    print("\n".join(["==", *lines]))
    return int(any(wrong for _, _, wrong in table))


if __name__ == "__main__":
    sys.exit(main())
