"""Steps of a full-size model with random weights, through scheduler and executor, by batch size.

    python benchmarks/dummy_model.py                      GLM-4.5V-FP8, all 46 layers (110 GB)
    python benchmarks/dummy_model.py --layers 4           a slice of it
    python benchmarks/dummy_model.py --quantization none  in BF16

Prints start-up phases, then for each number of requests the median decode step, and the time of
a step that computes a whole prompt. Routing is spread evenly over the experts, as trained routers
aim at; see `glimt/models/dummy.py`.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from glimt.checkpoint import read_checkpoint
from glimt.config import CacheSettings, ModelSettings, Settings
from glimt.processes.build import Engine, build_engine
from glimt.processes.launch import make_plan
from glimt.tiny.checkpoint import make_tiny_checkpoint
from glimt.wire import PixelRef, SamplingParams, Submit

# GLM-4.5V's sizes; everything else of its config.json equals the tiny checkpoint's.
FULL_SIZE: dict[str, dict[str, Any]] = {
    "text_config": {
        "hidden_size": 4096,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 10944,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 128,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "vocab_size": 151552,
        "max_position_embeddings": 65536,
    },
    "vision_config": {
        "depth": 24,
        "hidden_size": 1536,
        "num_heads": 12,
        "out_hidden_size": 4096,
        "intermediate_size": 10944,
    },
}


class NoPixels:
    """Prompts here are text."""

    def view(self, ref: PixelRef) -> memoryview:
        """Never asked for."""
        raise ValueError(f"there are no pixels at {ref}")


def build(layers: int, quantization: str, max_num_seqs: int, device: str) -> Engine:
    """The engine, with its phases printed."""
    sizes = json.loads(json.dumps(FULL_SIZE))
    sizes["text_config"]["num_hidden_layers"] = layers
    with tempfile.TemporaryDirectory() as folder:
        path = make_tiny_checkpoint(Path(folder) / "sizes")
        settings = Settings(
            model=str(path),
            models=ModelSettings(
                load_format="dummy",
                quantization="fp8" if quantization == "fp8" else None,
                hf_overrides=json.dumps(sizes),
                max_model_len="16K",
            ),
            cache=CacheSettings(
                max_num_seqs=max_num_seqs, device="cuda" if device == "cuda" else "cpu"
            ),
        )
        plan = make_plan(settings, read_checkpoint(path, overrides=sizes))
        return build_engine(
            plan.engine, [NoPixels()], lambda *phase: print("  {:<10}{:7.2f} s  {}".format(*phase))
        )


def generate(
    engine: Engine, ids: "itertools.count[int]", n: int, prompt: int, new: int
) -> list[float]:
    """Milliseconds of each turn of an overlapped loop that answers `n` equal requests."""
    random = np.random.default_rng(0)
    for seed in range(n):
        tokens = random.integers(0, 100_000, prompt).astype(np.int32)
        submit = Submit(
            request_id=next(ids),
            server=0,
            token_ids=tokens.tobytes(),
            sampling=SamplingParams(max_tokens=new, temperature=0.8, seed=seed),
        )
        for _, refusal in engine.scheduler.add(submit):
            raise SystemExit(f"refused: {refusal.error}")
    turns, behind = [], None
    while True:
        started = time.perf_counter()
        plan = engine.scheduler.schedule()
        ahead = None if plan is None else engine.executor.launch(plan)
        if behind is not None:
            engine.scheduler.commit(behind.plan, behind.result())
        turns.append(1000 * (time.perf_counter() - started))
        if ahead is None:
            return turns
        behind = ahead


def main() -> None:
    """Build once, then measure each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=46)
    parser.add_argument("--quantization", choices=["fp8", "none"], default="fp8")
    parser.add_argument("--requests", type=int, nargs="*", default=[1, 8, 32, 64, 128])
    parser.add_argument("--prompt", type=int, default=1433, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    engine = build(options.layers, options.quantization, max(options.requests), options.device)
    info = engine.info
    print(f"{options.layers} layers, {info.weights_format}, {info.dtype} on {info.device}")
    ids = itertools.count()
    generate(engine, ids, 1, 64, 8)
    for n in options.requests:
        turns = generate(engine, ids, n, options.prompt, options.tokens)
        decode = statistics.median(turns[len(turns) // 2 : -1])
        print(
            f"{n:4d} requests of {options.prompt}: decode step {decode:8.2f} ms, "
            f"{1000 * n / decode:8.0f} tokens/s; all in {sum(turns) / 1000:6.2f} s"
        )


if __name__ == "__main__":
    main()
