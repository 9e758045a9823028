"""`vllm bench serve`, again and again in one process; run by vLLM's Python.

    VENV/bin/python vllm_process.py

Each line of standard input is a JSON list of arguments, each line that it writes is empty or says
what went wrong. vLLM takes 15 s to import, in which it keeps a core busy; the client is the same
as the command's: its parser, its `main`.
"""

import json
import os
import sys
import traceback

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser


def serve() -> None:
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)  # the client's table goes where its notes go
        parser = FlexibleArgumentParser()
        add_cli_args(parser)
        answers.write("ready\n")
        for line in sys.stdin:
            try:
                main(parser.parse_args(json.loads(line)))
                answers.write("\n")
            except (Exception, SystemExit):
                answers.write(json.dumps(traceback.format_exc()) + "\n")


if __name__ == "__main__":
    serve()
