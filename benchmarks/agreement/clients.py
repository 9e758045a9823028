"""The two clients: each offers a load to a server and gives its JSON result."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Client = Callable[[Sequence[str]], dict[str, Any]]

_COMMON = ("--temperature", "0", "--percentile-metrics", "ttft,tpot,itl,e2el", "--disable-tqdm")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def glimt(before: Sequence[str]) -> Client:
    """`glimt bench serve --vllm-compat`; `before` stands before its command."""
    command = [*before, sys.executable, "-m", "glimt", "bench", "serve", "--vllm-compat"]

    def run(arguments: Sequence[str]) -> dict[str, Any]:
        with _result() as (options, file):
            whole = [*command, *arguments, *_COMMON, *options]
            done = subprocess.run(whole, env=os.environ | _OFFLINE, capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(f"{' '.join(whole)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
            return dict(json.loads(file.read_text()))

    return run


@contextlib.contextmanager
def vllm(python: Path, before: Sequence[str], log: Path) -> Iterator[Client]:
    """`vllm bench serve` in one process for all runs; what it prints goes to `log`."""
    script = Path(__file__).with_name("vllm_process.py")
    with log.open("w") as file:
        process = subprocess.Popen(
            [*before, str(python), str(script)],
            env=os.environ | _OFFLINE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            bufsize=1,
        )
    ask, told = process.stdin, process.stdout
    if ask is None or told is None:
        raise RuntimeError("the process has no pipes")

    def run(arguments: Sequence[str]) -> dict[str, Any]:
        with _result() as (options, result):
            ask.write(json.dumps([*arguments, *_COMMON, *options]) + "\n")
            answer = told.readline()
            if answer != "\n":
                trouble = json.loads(answer) if answer else f"it ended; see {log}"
                raise SystemExit(f"vLLM's client: {trouble}")
            return dict(json.loads(result.read_text()))

    try:
        if told.readline() != "ready\n":
            raise SystemExit(f"vLLM's client did not start:\n{log.read_text()[-3000:]}")
        yield run
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def _result() -> Iterator[tuple[list[str], Path]]:
    """(options that have the result written, where it will be)."""
    with tempfile.TemporaryDirectory() as folder:
        yield (
            ["--save-result", "--result-dir", folder, "--result-filename", "r.json"],
            Path(folder) / "r.json",
        )
