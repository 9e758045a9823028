"""All that two GPUs have to show, correctness and speed, in a given time and the order of weight.

    python benchmarks/two_gpus.py --out build/two-gpus            six minutes at most
    python benchmarks/two_gpus.py --only tp2 exchange --seconds 120
    python benchmarks/two_gpus.py --device cpu                    whether all of it runs

Nothing else may use the GPUs: ranks that wait for each other in kernels would take turns with it.
Each piece is a command with a time of its own; one that hangs is ended with all its processes and
the next begins. One that has said its last words and does not end loses no time: its figures are
whole. What each printed is in a file of its own; the end of it is shown, and what is wrong with it.
Pieces that the time does not suffice for are named. Status 1 if anything is wrong.
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
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
LEAST_S = 15.0  # a piece that gets less is left out
SHOWN_LINES = 14
END_S = 6.0  # from the last words of a piece to its end
_LOOK_S = 0.2


@dataclass(frozen=True)
class Piece:
    """A command. `small` is what it is told besides where there are only CPUs; `must_say`: else it
    is wrong although it ended well; `last_words`: what it says when it has found all there is.
    `result`: how it is told where its results belong, if at all: in a file or a folder.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    small: tuple[str, ...] = ()
    must_say: str = ""
    last_words: str = ""
    result: Literal["--json", "--out", ""] = "--json"


def _tests(file: str, *more: str, marks: str = "gpu2") -> tuple[str, ...]:
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks, "--tb=short")
    return (*words, f"tests/parallel/{file}", *more)


_TINY = "--model tiny --quantization none --max-model-len 256 --prompt 20 --tokens 6 --requests 1"
TINY = tuple(_TINY.split())
TINY_STEPS = (*TINY, "--device", "cpu", "--grid", "4", "6", "--rounds", "1")
CPU = ("--device", "cpu")


def _steps_of(name: str, limit_s: float, *more: str, must_say: str = "") -> Piece:
    words = ("benchmarks/dummy_model.py", "-tp", "2", "--requests", "1", "8", "64")
    words = (*words, "--rounds", "5", "--tokens", "64", *more)
    return Piece(name, words, limit_s, TINY_STEPS, must_say, last_words="first token of an image")


def _trace_of(name: str, *more: str) -> Piece:
    words = ("benchmarks/trace_step.py", "-tp", "2", "--requests", "1", "--drop", *more)
    small = (
        "--model",
        "tiny",
        "--quantization",
        "none",
        "--max-model-len",
        "256",
        "--prompt",
        "20",
        "--steps",
        "2",
        *CPU,
    )
    return Piece(name, words, 45, small, must_say="launches a step", result="")


def _served(name: str, flags: str) -> Piece:
    words = ("benchmarks/full_size.py", "--part", "serve", "--serve-flags", flags)
    words = (*words, "--seconds", "15", "--limit", "105", "--rates", "20", "10")
    small = ("--model", "tiny", *CPU, "--rates", "20", "--seconds", "1")
    return Piece(name, words, 115, small, must_say="TTFT", result="--out")


PIECES = (
    Piece("sums", _tests("test_ranks_on_gpus.py"), 75, must_say=" passed", result=""),
    _steps_of("tp2", 60, must_say="fused with norms"),
    Piece(
        "tokens",
        _tests("test_on_two_gpus.py", "-k", "not without and not NCCL"),
        90,
        must_say=" passed",
        result="",
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
        result="",
    ),
    Piece("beside", _tests("test_beside.py", marks="gpu"), 30, must_say=" passed", result=""),
    Piece(
        "exchange",
        ("benchmarks/expert_exchange.py",),
        45,
        ("--model", "tiny", "--rows", "1", "8", *CPU),
        must_say="DEALS_FROM",
    ),
    _steps_of("tp2-nccl", 50, "--disable-custom-all-reduce"),
    _steps_of("tp2-ep-data", 50, "-ep", "--mm-encoder-tp-mode", "data"),
    Piece("sums-by-size", ("benchmarks/all_reduce.py",), 40, ("--rows", "1", *CPU)),
    Piece(
        "dp2-plain",
        ("benchmarks/copies.py", "--requests", "1", "64", "8", "--seconds", "50"),
        65,
        (*TINY, *CPU),
    ),
    _served("dp2-serve", "-dp 2"),
    _served("tp2-serve", "-tp 2"),
    _trace_of("tp2-trace"),
    _trace_of("tp2-ep-trace", "-ep"),
    Piece("draws", ("benchmarks/draws_over_gpus.py",), 40, ("--rows", "1", "--rounds", "1", *CPU)),
)


def run(piece: Piece, limit_s: float, out: Path, *, on_cpu: bool) -> str:
    """What is wrong with the piece; nothing, if all is well."""
    log = out / f"{piece.name}.txt"
    command = [sys.executable, *piece.command, *(piece.small if on_cpu else ())]
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    if piece.command[0] == "-m":
        environment |= {"GLIMT_TEST_DEVICE": "cpu"} if on_cpu else {}
    if piece.result:
        command += [piece.result, str(out / piece.name) + piece.result.replace("--", ".")]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status = _wait(process, limit_s, log, piece.last_words)
        _end_all(process)
    said = log.read_text(errors="replace")
    print("\n".join(said.splitlines()[-SHOWN_LINES:]), flush=True)
    if status is None and _has_said(log, piece.last_words):
        return f"its figures are whole, but it did not end within {END_S:.0f} s"
    if status is None:
        return f"not done after {limit_s:.0f} s"
    if status:
        return f"exit status {status}"
    if piece.must_say not in said and not on_cpu:
        return f"it does not say {piece.must_say!r}"
    return ""


def _wait(
    process: "subprocess.Popen[bytes]", limit_s: float, log: Path, last_words: str
) -> int | None:
    """The status; None: it was not done in time, or does not end after its last words."""
    ends_s, is_ending = time.monotonic() + limit_s, False
    while process.poll() is None and time.monotonic() < ends_s:
        if not is_ending and _has_said(log, last_words):
            is_ending, ends_s = True, min(ends_s, time.monotonic() + END_S)
        time.sleep(_LOOK_S)
    return process.poll()


def _has_said(log: Path, words: str) -> bool:
    return bool(words) and words in log.read_text(errors="replace")


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
