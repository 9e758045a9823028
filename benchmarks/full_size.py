"""All figures of a full-size model with random weights on one GPU, and the table of them.

    python benchmarks/full_size.py [--out build/full-size]        GLM-4.5V-FP8, an H200
    python benchmarks/full_size.py --part engine --kv fp8         steps, prompts, first token, start
    python benchmarks/full_size.py --part serve --rates 1 5 10    what users of a server see
    python benchmarks/full_size.py --part serve --rates 15 20 --limit 150 --seconds 20
    python benchmarks/full_size.py --part serve --serve-flags "-dp 2 -ep" --out build/dp2-ep

Runs `dummy_model.py` with a BF16 and with an e4m3 KV cache, then `glimt serve` under
`glimt bench serve` with the look-alike of VisionArena at each rate, with other pictures at each,
which no cache knows. Each part writes its JSON when it is done, and figures.md has all parts that
are in the folder, so they may be run one by one. `--limit`: seconds for all rates together, start
included; a rate that does not end in them is given up, and so are those after it.
`--model tiny --device cpu` shows whether it runs.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from make_dummy_checkpoint import make_dummy_checkpoint
from model_sizes import MODELS
from serving import served

HERE = Path(__file__).resolve().parent
STEP_AIMS_MS = {1: 4.4, 8: 14.2, 32: 29.0, 64: 35.0, 128: 41.0}


def engine(options: argparse.Namespace, kv: str) -> None:
    """Measure what the engine alone does, with one type of KV cache."""
    out = options.out / f"engine-{kv}.json"
    command = [sys.executable, str(HERE / "dummy_model.py"), "--model", options.model]
    command += ["--device", options.device, "--kv-cache-dtype", kv, "--json", str(out)]
    command += ["--layers", str(options.layers)]
    if options.model == "tiny":
        command += ["--quantization", "none", "--max-model-len", "512", "--prompt", "30"]
        command += ["--tokens", "6", "--requests", "1", "2", "--grid", "4", "6", "--rounds", "1"]
    elif kv == "fp8":
        command += ["--requests", "64", "128"]
    subprocess.run(command, check=True)


def serve(options: argparse.Namespace) -> None:
    """Measure what users see at each rate, as long as there is time."""
    end = time.monotonic() + options.limit
    folder = make_dummy_checkpoint(options.out / "checkpoint", options.model)
    flags = [
        "--load-format",
        "dummy",
        "--device",
        options.device,
        "--max-model-len",
        "8K" if options.model != "tiny" else "4K",
    ]
    flags += shlex.split(options.serve_flags)
    if options.model != "tiny":
        flags += ["--quantization", "fp8"]
    if options.layers:
        layers = {"text_config": {"num_hidden_layers": options.layers}}
        flags += ["--hf-overrides", json.dumps(layers)]
    log = options.out / "server.log"
    with served(str(folder), *flags, log=log) as (url, name):
        for rate in options.rates:
            bench = [sys.executable, "-m", "glimt", "bench", "serve", "--backend", "openai-chat"]
            bench += ["--endpoint", "/v1/chat/completions", "--base-url", url, "--model", name]
            bench += ["--tokenizer", str(folder), "--dataset-name", "visionarena-like"]
            bench += ["--request-rate", str(rate), "--num-warmups", "2", "--ignore-eos"]
            bench += ["--num-prompts", str(max(8, round(rate * options.seconds)))]
            bench += ["--seed", str(round(1000 * rate)), "--save-result"]
            bench += ["--result-dir", str(options.out)]
            bench += ["--result-filename", f"serve-{rate:g}.json"]
            try:
                subprocess.run(bench, check=True, timeout=max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                print(f"no time left for {rate:g} requests/s: --limit {options.limit:g}")
                return
            write_figures(options.out)


def write_figures(out: Path) -> str:
    """The table of all parts that have been measured, which it also writes to figures.md."""
    engines, rates = sorted(out.glob("engine-*.json")), sorted(out.glob("serve-*.json"))
    found = {
        "engine": {
            file.stem.removeprefix("engine-"): json.loads(file.read_text()) for file in engines
        },
        "serve": [json.loads(file.read_text()) for file in rates],
    }
    found["serve"].sort(key=lambda result: float(result["request_rate"]))
    text = "\n".join(table(found)) + "\n"
    (out / "figures.md").write_text(text)
    return text


def table(found: dict[str, Any]) -> Iterator[str]:
    """The figures as Markdown."""
    for kv, result in found.get("engine", {}).items():
        yield f"{result['device']}, torch {result['torch']}, KV cache {kv}:\n"
        yield "| requests | at once | decode step | aim | tokens/s |"
        yield "|---|---|---|---|---|"
        for step in result["decode"]:
            aim = STEP_AIMS_MS.get(step["requests"], 0)
            rate = 1000 * step["rows"] / step["median_ms"]
            yield (
                f"| {step['requests']} | {step['rows']} | {step['median_ms']:.2f} ms | "
                f"{f'{aim} ms' if aim else ''} | {rate:.0f} |"
            )
        first = result["first_token"]
        phases = ", ".join(f"{name} {value:.1f}" for name, value in result["startup_s"].items())
        yield f"\nPrompts: {result['prefill_tokens_per_s']:.0f} tokens/s (aim 30,000)."
        yield f"First token of an image of {first['image_tokens']} tokens and 90 of text:"
        yield f"{first['whole_ms']:.1f} ms (aim 110; image {first['encode_ms']:.1f}, prompt and"
        yield f"draw {first['prefill_and_draw_ms']:.1f}). Start-up in seconds: {phases}.\n"
    if found.get("serve"):
        yield "| requests/s | done | TTFT mean / p99 | TPOT mean / p99 | output tokens/s | failed |"
        yield "|---|---|---|---|---|---|"
        for result in found["serve"]:
            yield (
                f"| {result['request_rate']} | {result['completed']} | "
                f"{result['mean_ttft_ms']:.0f} / "
                f"{result['p99_ttft_ms']:.0f} ms | {result['mean_tpot_ms']:.1f} / "
                f"{result['p99_tpot_ms']:.1f} ms | {result['output_throughput']:.0f} | "
                f"{result['failed']} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=[*MODELS], default="106b")
    parser.add_argument("--layers", type=int, default=0, help="0: all")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--part", choices=["all", "engine", "serve"], default="all")
    parser.add_argument("--kv", choices=["auto", "fp8"], nargs="*", default=["auto", "fp8"])
    parser.add_argument("--rates", type=float, nargs="*", default=[1, 5, 10, 15, 20])
    parser.add_argument("--serve-flags", default="", help="more flags of the server")
    parser.add_argument("--seconds", type=float, default=30, help="of load at each rate")
    parser.add_argument("--limit", type=float, default=900, help="seconds for all rates together")
    parser.add_argument("--out", type=Path, default=Path("build/full-size"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part != "serve":
        for kv in options.kv:
            engine(options, kv)
            write_figures(options.out)
    if options.part != "engine":
        serve(options)
    print(write_figures(options.out))


if __name__ == "__main__":
    main()
