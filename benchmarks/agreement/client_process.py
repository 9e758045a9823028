"""A benchmark client that makes run after run in one process.

    PYTHON -P client_process.py vllm|glimt

PYTHON is one that has this client; the file needs nothing else of the tree. Each line of standard
input is a JSON list of arguments of `bench serve`, each line that it writes is empty or says what
went wrong. Both clients start slowly beside a short run (vLLM's keeps a core busy for 15 s with its
imports), and each is the same as its command: its parser, its `main`.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

Run = Callable[[Sequence[str]], object]


def vllm() -> Run:
    """`vllm bench serve`."""
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    return lambda arguments: main(parser.parse_args(arguments))


def glimt() -> Run:
    """`glimt bench serve`, with vLLM's definitions."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where Glimt is not installed
    from glimt.bench.cli import app

    return lambda arguments: app(["serve", "--vllm-compat", *arguments])


def serve(which: str) -> None:
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)  # the client's table goes where its notes go
        run = {"vllm": vllm, "glimt": glimt}[which]()
        answers.write("ready\n")
        for line in sys.stdin:
            answers.write(_trouble(run, json.loads(line)) + "\n")


def _trouble(run: Run, arguments: Sequence[str]) -> str:
    """What went wrong in a run, as JSON; empty if nothing did."""
    try:
        run(arguments)
    except SystemExit as end:
        return json.dumps(f"it ended with {end.code}") if end.code else ""
    except Exception:
        return json.dumps(traceback.format_exc())
    return ""


if __name__ == "__main__":
    serve(sys.argv[1])
