"""A short benchmark of a whole server, as a user would run it, with its report.

    python benchmarks/serve.py [--model FOLDER] [--out build/bench] [--num-prompts 24] [--rate 1]

Starts `glimt serve` (the built-in model; a tiny random one where an installation has none), runs
`glimt bench serve` on the look-alike of VisionArena against it, and writes report.html, result.json
and events.jsonl.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from serving import served

from glimt.builtin.model import NAME, model_folder
from glimt.errors import StartupError
from glimt.tiny.checkpoint import make_tiny_checkpoint


def choose_model(out: Path) -> tuple[str, Path]:
    """(what to serve, the folder with its tokenizer)."""
    try:
        return NAME, model_folder()
    except StartupError as error:
        print(f"{error.message.partition(':')[0]}; a tiny random one takes its place")
    tiny = make_tiny_checkpoint(out / "tiny-random-glm4v-moe")
    return str(tiny), tiny


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="another checkpoint")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--num-prompts", type=int, default=24)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--output-len", type=int, default=32)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model, folder = (
        (str(options.model), options.model) if options.model else choose_model(options.out)
    )
    with served(model, log=options.out / "server.log") as (url, name):
        bench = [sys.executable, "-m", "glimt", "bench", "serve", "--backend", "openai-chat"]
        bench += ["--endpoint", "/v1/chat/completions", "--base-url", url, "--model", name]
        bench += ["--tokenizer", str(folder), "--dataset-name", "visionarena-like"]
        bench += ["--num-prompts", str(options.num_prompts), "--request-rate", str(options.rate)]
        bench += ["--output-len", str(options.output_len), "--temperature", "0", "--ignore-eos"]
        bench += ["--num-warmups", "2", "--server-metrics", "--slo-preset", "chat"]
        bench += ["--html", str(options.out / "report.html"), "--save-result"]
        bench += ["--raw", str(options.out / "events.jsonl")]
        bench += ["--result-dir", str(options.out), "--result-filename", "result.json"]
        return subprocess.run(bench).returncode


if __name__ == "__main__":
    sys.exit(main())
