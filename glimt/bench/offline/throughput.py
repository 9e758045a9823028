"""`glimt bench throughput`: all prompts at once, without a server, and how long they take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from glimt.bench.data.matching import without_effect
from glimt.bench.data.prompt import Image, Prompt
from glimt.bench.data.source import prompts
from glimt.bench.offline.engine import EngineOptions, load, tokens_of
from glimt.bench.options import DataOptions
from glimt.bench.report.progress import steps
from glimt.errors import BadSettings
from glimt.offline.params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class ThroughputOptions:
    """How many, and what becomes of the result."""

    num_prompts: int = 1000
    """Prompts, all of them at once."""
    num_warmups: int = 0
    """Prompts before them that are not measured."""
    output_json: str | None = None
    """File for the result."""


def throughput(
    model: str,
    wishes: ThroughputOptions,
    data: DataOptions,
    engine: EngineOptions,
    tell: Callable[[str], None],
) -> int:
    """Measure and print. Raises StartupError."""
    if wishes.num_prompts < 1 or wishes.num_warmups < 0 or data.turns > 1:
        raise BadSettings("--num-prompts must be at least 1; conversations are not done here")
    for note in without_effect(data):
        tell(f"note: {note}")
    tokens = tokens_of(model)
    with steps("making prompts", wishes.num_prompts, is_shown=True) as step:
        made = []
        for prompt in prompts(data, tokens, wishes.num_prompts, engine.seed):
            made.append(prompt)
            step(len(made))
    warm = list(prompts(data, tokens, wishes.num_warmups, engine.seed + 1_000_003))
    with load(model, engine) as llm:
        if warm:
            llm.chat([_messages(prompt) for prompt in warm], _params(warm), use_tqdm=False)
        began_s = time.perf_counter()
        answers = llm.chat([_messages(prompt) for prompt in made], _params(made))
        seconds = time.perf_counter() - began_s
    num_in = sum(answer.usage.prompt_tokens for answer in answers)
    num_out = sum(answer.usage.completion_tokens for answer in answers)
    result = {
        "elapsed_time": seconds,
        "num_requests": len(answers),
        "total_num_tokens": num_in + num_out,
        "requests_per_second": len(answers) / seconds,
        "tokens_per_second": (num_in + num_out) / seconds,
    }
    rates = [count / seconds for count in (len(answers), num_in + num_out, num_out)]
    tell(
        "Throughput: {:.2f} requests/s, {:.2f} total tokens/s, {:.2f} output tokens/s".format(
            *rates
        )
    )
    tell(f"Total num prompt tokens:  {num_in}")
    tell(f"Total num output tokens:  {num_out}")
    if wishes.output_json is not None:
        Path(wishes.output_json).write_bytes(msgspec.json.encode(result))
    return 0


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    content = [
        {"type": "image_url", "image_url": {"url": part.url}}
        if isinstance(part, Image)
        else {"type": "text", "text": part}
        for part in prompt.turns[0].parts
    ]
    return [{"role": "user", "content": content}]


def _params(made: Sequence[Prompt]) -> list[SamplingParams]:
    return [
        SamplingParams(temperature=1.0, ignore_eos=True, max_tokens=prompt.turns[0].output_tokens)
        for prompt in made
    ]
