"""All prompts of a run, from the dataset that was asked for, made complete.

Too small a dataset is filled up with rows drawn again; single prompts become conversations;
`--cache-bust` makes each text and image differ from all others.
"""

import dataclasses
import random
import secrets
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from glimt.bench.data.matching import refused
from glimt.bench.data.prompt import Image, Prompt
from glimt.bench.data.tokens import Tokens
from glimt.bench.options import DataOptions, DatasetName
from glimt.errors import BadSettings

Dataset = Callable[[DataOptions, Tokens | None, int, int], Iterator[Prompt]]

# Their conversations are the dataset's own; those of others are put together from single prompts.
_WITH_TURNS = {"hf"}
_MADE = {"random", "random-mm", "prefix_repetition", "visionarena-like"}


def prompts(
    options: DataOptions, tokens: Tokens | None, num_prompts: int, seed: int
) -> Iterator[Prompt]:
    """`num_prompts` conversations (fewer with --no-oversample). Raises BadSettings."""
    if options.dataset_name in _MADE and options.dataset_path is not None:
        raise BadSettings(
            f"--dataset-path: {options.dataset_name} makes its prompts, it reads none"
        )
    if options.turns < 1 or options.think_time < 0:
        raise BadSettings("--turns must be at least 1, --think-time at least 0")
    if problems := list(refused(options)):
        raise BadSettings("these options cannot be used:", problems)
    joined = 1 if options.dataset_name in _WITH_TURNS else options.turns
    source = _joined(
        dataset(options.dataset_name)(options, tokens, num_prompts * joined, seed), joined
    )
    if options.dataset_name in _MADE:  # never too few, and too large to be kept
        made: Iterator[Prompt] = islice(source, num_prompts)
    else:
        made = filled(source, num_prompts, seed, no_oversample=options.no_oversample)
    thinking = np.random.default_rng((seed, 4))
    run = secrets.token_hex(4)  # no seed: a server may remember the same command of an hour ago
    for index, prompt in enumerate(made):
        prompt = _paused(prompt, options.think_time, thinking)
        yield busted(prompt, f"{run}-{index:x}") if options.cache_bust else prompt


def dataset(name: DatasetName) -> Dataset:
    """What makes the prompts of a dataset; only its libraries are loaded."""
    if name in ("random", "prefix_repetition"):
        from glimt.bench.data import random_text

        is_random = name == "random"
        return random_text.random_prompts if is_random else random_text.prefix_repetition_prompts
    if name == "random-mm":
        from glimt.bench.data.random_images import random_image_prompts

        return random_image_prompts
    if name == "visionarena-like":
        from glimt.bench.data.visionarena_like import visionarena_like_prompts

        return visionarena_like_prompts
    if name == "hf":
        from glimt.bench.data.hub import hub_prompts

        return hub_prompts
    from glimt.bench.data import files

    return {
        "sharegpt": files.sharegpt_prompts,
        "custom": files.custom_prompts,
        "custom_image": files.custom_image_prompts,
        "custom_mm": files.custom_image_prompts,
        "burstgpt": files.burstgpt_prompts,
        "timed_trace": files.timed_trace_prompts,
    }[name]


def filled(
    source: Iterator[Prompt], num_prompts: int, seed: int, *, no_oversample: bool = False
) -> Iterator[Prompt]:
    """The first `num_prompts`; if there are fewer, some are drawn again."""
    given: list[Prompt] = []
    for prompt in islice(source, num_prompts):
        given.append(prompt)
        yield prompt
    if not given:
        raise BadSettings("the dataset has no usable row")
    if not no_oversample:
        draw = random.Random(seed)
        for _ in range(num_prompts - len(given)):
            yield draw.choice(given)


def _joined(source: Iterator[Prompt], num_turns: int) -> Iterator[Prompt]:
    """Conversations of `num_turns` prompts each; only the first shows its images."""
    if num_turns == 1:
        yield from source
        return
    while group := list(islice(source, num_turns)):
        turns = [group[0].turns[0]]
        turns += [
            dataclasses.replace(prompt.turns[0], parts=(prompt.turns[0].text,))
            for prompt in group[1:]
        ]
        yield Prompt(turns=tuple(turns), at_s=group[0].at_s)


def _paused(prompt: Prompt, think_time: float, random: np.random.Generator) -> Prompt:
    if think_time == 0 or len(prompt.turns) == 1:
        return prompt
    later = [
        dataclasses.replace(turn, pause_s=float(random.exponential(think_time)))
        for turn in prompt.turns[1:]
    ]
    return dataclasses.replace(prompt, turns=(prompt.turns[0], *later))


def busted(prompt: Prompt, mark: str) -> Prompt:
    """The prompt with `mark` in front of its first text and in each of its images."""
    from glimt.bench.data.images import marked

    first = prompt.turns[0]
    if first.token_ids:
        raise BadSettings("--cache-bust: prompts of token ids cannot be marked")
    parts: list[str | Image] = [
        f"[{mark}]",
        *(marked(part, mark) if isinstance(part, Image) else part for part in first.parts),
    ]
    if len(parts) > 1 and isinstance(parts[1], str):
        parts[:2] = [f"{parts[0]} {parts[1]}"]
    turn = dataclasses.replace(first, parts=tuple(parts), text_tokens=None)
    return dataclasses.replace(prompt, turns=(turn, *prompt.turns[1:]), unmarked=prompt)
