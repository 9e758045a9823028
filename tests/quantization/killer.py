"""Runs `glimt quantize` in children of this process that are SIGKILLed at given system calls.

    python -m tests.quantization.killer ARGUMENTS.json

A child's n-th call of the kind that changes files is its last thought: it is killed before it
makes that call. Children are forked, since importing torch anew each time would take seconds; so
this process must never have had a second thread.
"""

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from glimt.quantization.command import Wishes, quantize
from glimt.quantization.workspace import JOURNAL

CHANGES = {"write", "pwrite", "fsync", "rename", "unlink", "rmdir", "mkdir", "ftruncate", "open"}


def count_calls(on_call: Callable[[int], None]) -> None:
    """Call `on_call` with 1, 2, … before each file-changing system call, of any thread."""
    lock, count = threading.Lock(), 0

    def see(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        if event != "c_call" or getattr(argument, "__module__", "") != "posix":
            return
        if argument.__name__ in CHANGES:
            with lock:
                count += 1
                on_call(count)

    threading.setprofile(see)
    sys.setprofile(see)


def fork(work: Callable[[], int]) -> int:
    """Do `work` in a child; its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(source: Path, target: Path, **wishes: Any) -> int:
    wanted = Wishes(source=str(source), target=str(target), progress=False, **wishes)
    return quantize(wanted, lambda line: None)


def count(source: Path, target: Path, **wishes: Any) -> int:
    """How many such calls a whole run makes."""
    reading, writing = os.pipe()

    def work() -> int:
        calls: list[int] = []
        count_calls(calls.append)
        status = run(source, target, **wishes)
        sys.setprofile(None)
        os.write(writing, str(len(calls)).encode())
        return status

    status = fork(work)
    if status:
        raise RuntimeError(f"an undisturbed run ended with {status}")
    return int(os.read(reading, 20))


def run_until(call: int, source: Path, target: Path, **wishes: Any) -> int:
    """A run that is killed before its `call`-th call."""

    def die(number: int) -> None:
        if number == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> int:
        count_calls(die)
        return run(source, target, **wishes)

    return fork(work)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def judge(source: Path, folder: Path, call: int, expected: dict[str, bytes]) -> None:
    """Kill a run at `call`, look, go on, and look again. Raises RuntimeError for what is wrong."""
    target = folder / "fp8"
    was_killed = run_until(call, source, target) == -signal.SIGKILL
    found = content(target) if target.exists() else None
    if found is not None and {**found, JOURNAL: b""} != {**expected, JOURNAL: b""}:
        raise RuntimeError(f"killed at call {call}, a half-written target looks complete")
    if was_killed and found != expected and fork(lambda: run(source, target)) != 0:
        raise RuntimeError(f"killed at call {call}, the next run does not finish")
    if content(target) != expected or os.listdir(folder) != ["fp8"]:
        raise RuntimeError(f"killed at call {call}, the result differs: {os.listdir(folder)}")


def judge_overwriting(source: Path, folder: Path, call: int, expected: dict[str, bytes]) -> None:
    """The same with an old target: at any moment it, or the new one, is there or can be had."""
    target = folder / "fp8"
    target.mkdir(parents=True)
    (target / "config.json").write_text("old")
    was_killed = run_until(call, source, target, overwrite=True) == -signal.SIGKILL
    found = content(target) if target.exists() else content(folder / "fp8.replaced")
    found.pop(JOURNAL, None)
    if found not in (expected, {"config.json": b"old"}):
        raise RuntimeError(f"killed at call {call}, neither the old nor the new is there")
    if was_killed and fork(lambda: run(source, target, overwrite=True)) != 0:
        raise RuntimeError(f"killed at call {call}, the next run does not finish")
    if content(target) != expected or os.listdir(folder) != ["fp8"]:
        raise RuntimeError(f"killed at call {call}, the result differs: {os.listdir(folder)}")


def main() -> None:
    """Undisturbed once, then killed at every `step`-th call and at each of the `last` ones."""
    arguments = json.loads(Path(sys.argv[1]).read_text())
    source, folder = Path(arguments["source"]), Path(arguments["folder"])
    torch.set_num_threads(1)
    whole = folder / "undisturbed"
    num_calls = count(source, whole)
    expected = content(whole)
    step, last = arguments["step"], arguments["last"]
    calls = {*range(1, num_calls + 1, step), *range(num_calls - last, num_calls + 1)}
    trials = 0
    for judged in (judge, judge_overwriting) if arguments["overwrite"] else (judge,):
        for call in sorted(calls):
            place = folder / "trial"
            place.mkdir()
            judged(source, place, call, expected)
            shutil.rmtree(place)
            trials += 1
    print(json.dumps({"calls": num_calls, "trials": trials}))


if __name__ == "__main__":
    main()
