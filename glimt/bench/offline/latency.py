"""`glimt bench latency`: one batch of equal prompts, again and again, and how long each takes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from tqdm import tqdm

from glimt.bench.data.lengths import Spread
from glimt.bench.data.random_text import RandomText
from glimt.bench.offline.engine import EngineOptions, load, tokens_of
from glimt.errors import BadSettings
from glimt.offline.params import SamplingParams

_PERCENTILES = (10, 25, 50, 75, 90, 99)


@dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    """The batch. Names and defaults are those of `vllm bench latency`."""

    input_len: int = 32
    """Tokens of each prompt."""
    output_len: int = 128
    """Tokens of each answer."""
    batch_size: int = 8
    """Prompts at once."""
    num_iters_warmup: int = 10
    """Iterations that are not measured."""
    num_iters: int = 30
    """Iterations that are."""
    output_json: str | None = None
    """File for the result."""


def latency(
    model: str, wishes: LatencyOptions, engine: EngineOptions, tell: Callable[[str], None]
) -> int:
    """Measure and print. Raises StartupError."""
    sizes = (wishes.input_len, wishes.output_len, wishes.batch_size, wishes.num_iters)
    if min(sizes) < 1 or wishes.num_iters_warmup < 0:
        raise BadSettings("lengths, --batch-size and --num-iters must be at least 1")
    made = RandomText(tokens_of(model), np.random.default_rng(engine.seed))
    draw = made.draw(wishes.batch_size, wishes.input_len, 1, Spread())
    prompts = [made.text([], int(place), wishes.input_len)[0] for place in draw.offsets]
    params = SamplingParams(temperature=1.0, ignore_eos=True, max_tokens=wishes.output_len)
    rounds = wishes.num_iters_warmup + wishes.num_iters
    seconds = []
    with load(model, engine, enable_prefix_caching=False) as llm:
        for _ in tqdm(range(rounds), desc="iterations"):
            began_s = time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            seconds.append(time.perf_counter() - began_s)
    measured = np.array(seconds[wishes.num_iters_warmup :])
    ranks = dict(zip(_PERCENTILES, np.percentile(measured, _PERCENTILES).tolist(), strict=True))
    tell(f"Avg latency: {measured.mean():.6f} seconds")
    for percent, value in ranks.items():
        tell(f"{percent}% percentile latency: {value:.6f} seconds")
    if wishes.output_json is not None:
        result = {
            "avg_latency": float(measured.mean()),
            "latencies": measured.tolist(),
            "percentiles": {str(percent): value for percent, value in ranks.items()},
        }
        Path(wishes.output_json).write_bytes(msgspec.json.encode(result))
    return 0
