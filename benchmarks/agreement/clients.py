"""The two clients: each offers a load to a server and gives its JSON result."""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Client = Callable[[Sequence[str]], dict[str, Any]]

_COMMON = ("--temperature", "0", "--percentile-metrics", "ttft,tpot,itl,e2el", "--disable-tqdm")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@contextlib.contextmanager
def client(which: str, python: Path, before: Sequence[str], log: Path) -> Iterator[Client]:
    """`bench serve` of "vllm" or "glimt", by a Python that has it, in one process for all runs.

    `before` stands before its command; what it prints goes to `log`. Raises SystemExit if it does
    not start, and at a run that fails.
    """
    script = Path(__file__).with_name("client_process.py")
    with (
        log.open("w") as file,
        subprocess.Popen(
            [*before, str(python), "-P", str(script), which],
            env=os.environ | _OFFLINE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            bufsize=1,
        ) as process,
    ):
        ask, told = process.stdin, process.stdout
        if ask is None or told is None:
            raise RuntimeError("the process has no pipes")

        def run(arguments: Sequence[str]) -> dict[str, Any]:
            with _result() as (options, result):
                ask.write(json.dumps([*arguments, *_COMMON, *options]) + "\n")
                answer = told.readline()
                if answer != "\n":
                    trouble = json.loads(answer) if answer else "it ended"
                    raise SystemExit(f"{which}'s client: {trouble}; see {log}")
                return dict(json.loads(result.read_text()))

        try:
            if told.readline() != "ready\n":
                raise SystemExit(f"{which}'s client did not start:\n{log.read_text()[-3000:]}")
            yield run
        finally:
            process.terminate()


@contextlib.contextmanager
def _result() -> Iterator[tuple[list[str], Path]]:
    """(options that have the result written, where it will be)."""
    with tempfile.TemporaryDirectory() as folder:
        yield (
            ["--save-result", "--result-dir", folder, "--result-filename", "r.json"],
            Path(folder) / "r.json",
        )
