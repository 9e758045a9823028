"""Requests for engine tests: by hand and at random, with images, positions and shared prefixes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from glimt.engine.limits import SchedulerLimits
from glimt.wire import ImageSpan, PixelRef, SamplingParams, Submit
from tests.support.grammars import random_budget, random_grammar

IMAGE_TOKEN = 1
EOS = 0


def make_limits(**changes: Any) -> SchedulerLimits:
    fields: dict[str, Any] = {
        "num_pages": 64,
        "page_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_model_len": 128,
        "image_budget": 32,
        "image_cache_tokens": 64,
        "vocab_size": 1000,
    }
    return SchedulerLimits(**(fields | changes))


def make_image(start: int, num_tokens: int, name: str, request_id: int = 0) -> ImageSpan:
    return ImageSpan(
        content_hash=name.encode().ljust(32, b"."),
        start=start,
        num_tokens=num_tokens,
        grid_h=2,
        grid_w=2 * num_tokens,
        num_frames=1,
        pixels=PixelRef(0, request_id, 0),  # lets a test see whose pixels are read
    )


def make_submit(
    request_id: int,
    token_ids: Sequence[int],
    *,
    images: Sequence[ImageSpan] = (),
    server: int = 0,
    priority: int = 0,
    cache_salt: bytes = b"",
    **sampling: Any,
) -> Submit:
    fields: dict[str, Any] = {"max_tokens": 4, "seed": request_id} | sampling
    positions, rope_delta = None, 0
    if images:
        positions_3L, rope_delta = image_positions(len(token_ids), images)
        positions = positions_3L.tobytes()
    return Submit(
        request_id=request_id,
        server=server,
        token_ids=np.array(token_ids, dtype=np.int32).tobytes(),
        positions=positions,
        rope_delta=rope_delta,
        images=tuple(images),
        sampling=SamplingParams(**fields),
        priority=priority,
        cache_salt=cache_salt,
    )


def image_positions(num_tokens: int, images: Sequence[ImageSpan]) -> tuple[Any, int]:
    """Positions [3, L] in which an image of one row of tokens takes few positions; the delta."""
    columns: list[tuple[int, int, int]] = []
    base = 0
    for span in images:
        while len(columns) < span.start:
            columns.append((base, base, base))
            base += 1
        columns += [(base, base + place % 2, base + place // 2) for place in range(span.num_tokens)]
        base += span.num_tokens // 2 + 1
    while len(columns) < num_tokens:
        columns.append((base, base, base))
        base += 1
    return np.array(columns, dtype=np.int32).T.copy(), base - num_tokens


def random_submit(
    rng: random.Random, request_id: int, limits: SchedulerLimits, *, grammars: bool = False
) -> Submit:
    """Anything that fits; prompts often share prefixes and images with others of the same rng.

    With `grammars` some answers are under one.
    """
    salt = rng.choice([b"", b"", b"tenant"])
    room = limits.max_model_len - 2
    token_ids: list[int] = [2, 3, 4, 5, 6, 7, 8, 9][: min(rng.choice([0, 4, 8]), room)]
    images: list[ImageSpan] = []
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
        num_tokens = min(rng.choice([1, 3, 4, 9, 12]), limits.max_image_tokens)
        if num_tokens < 1 or len(token_ids) + num_tokens + 1 > room:
            continue
        name = f"{rng.randrange(4)} of {num_tokens}, {salt!r}"
        images.append(make_image(len(token_ids), num_tokens, name, request_id))
        token_ids += [IMAGE_TOKEN] * num_tokens
        token_ids += [2] * rng.randrange(2)
    num_tail = rng.choice([1, 1, 2, 3, 7, 20])
    token_ids += [rng.randrange(2, 5) for _ in range(min(num_tail, room - len(token_ids)))]
    token_ids = token_ids or [2]
    grammar = random_grammar(rng) if grammars and rng.random() < 0.4 else None
    thinking = random_budget(rng, grammar) if grammars and rng.random() < 0.3 else None
    return make_submit(
        request_id,
        token_ids,
        images=images,
        server=rng.randrange(2),
        priority=rng.randrange(3),
        cache_salt=salt,
        max_tokens=rng.choice([1, 2, 5, 9, 30, 1000]) if rng.random() < 0.5 else rng.randint(1, 12),
        min_tokens=rng.choice([0, 0, 0, 3]),
        seed=rng.randrange(3),
        eos_token_ids=(EOS,) if rng.random() < 0.7 else (),
        stop_token_ids=(rng.randrange(1000), rng.randrange(1000)),
        logprobs=rng.choice([None, None, 0]),
        grammar=grammar,
        thinking=thinking,
    )


def random_limits(rng: random.Random) -> SchedulerLimits:
    """From roomy to so tight that everybody is preempted."""
    page_size = rng.choice([1, 2, 4, 8])
    num_pages = rng.choice([6, 8, 12, 16, 40])
    max_num_seqs = rng.choice([1, 2, 4, 8])
    return make_limits(
        num_pages=num_pages,
        page_size=page_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + rng.choice([0, 1, 5, 24, 100]),
        max_model_len=rng.randint(4, min(num_pages * page_size, 64)) if num_pages > 6 else 6,
        image_budget=rng.choice([12, 16, 40]),
        image_cache_tokens=rng.choice([12, 16, 24, 60]),
        prefix_caching=rng.random() < 0.8,
        follow_tokens=rng.choice([0, 1, 8, 12]),
        policy=rng.choice(["fcfs", "priority"]),
    )
