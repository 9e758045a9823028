"""`--dataset-name random-mm`: random text with images of evenly random pixels.

Such images are the worst case of every decoder and five times as large as photographs; see
`visionarena_like.py` for images that cost what photographs cost.
"""

import json
import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image as Pictures

from glimt.bench.data.buckets import Size, image_buckets
from glimt.bench.data.images import jpeg_image
from glimt.bench.data.prompt import Image, Prompt, Turn
from glimt.bench.data.random_text import RandomText, random_texts
from glimt.bench.data.tokens import Tokens
from glimt.bench.options import DataOptions
from glimt.errors import BadSettings


def random_image_prompts(
    options: DataOptions, tokens: Tokens | None, num_prompts: int, seed: int
) -> Iterator[Prompt]:
    """Prompts with text first and images after it. Raises BadSettings."""
    random = np.random.default_rng(seed)
    sizes, shares = image_buckets(options.random_mm_bucket_config)
    low, high = _image_counts(options)
    seen: list[Image] = []
    for text, count, output_len in random_texts(options, RandomText(tokens, random), num_prompts):
        num_images = int(random.integers(low, high + 1))
        images = [
            _image(sizes, shares, options.image_dup_ratio, seen, random) for _ in range(num_images)
        ]
        turn = Turn(parts=(text, *images), output_tokens=output_len, text_tokens=count)
        yield Prompt(turns=(turn,))


def _image_counts(options: DataOptions) -> tuple[int, int]:
    base, ratio = (
        options.random_mm_base_items_per_request,
        options.random_mm_num_mm_items_range_ratio,
    )
    if not 0 <= ratio <= 1:
        raise BadSettings("--random-mm-num-mm-items-range-ratio must be 0 to 1")
    try:
        limit = int(json.loads(options.random_mm_limit_mm_per_prompt).get("image", 255))
    except (ValueError, AttributeError, TypeError):
        raise BadSettings("--random-mm-limit-mm-per-prompt: not a JSON object of counts") from None
    high = min(limit, math.ceil(base * (1 + ratio)))
    return min(max(0, math.floor(base * (1 - ratio))), high), high


def _image(
    sizes: Sequence[Size],
    shares: Sequence[float],
    dup_ratio: float,
    seen: list[Image],
    random: np.random.Generator,
) -> Image:
    if seen and random.random() < dup_ratio:
        return seen[int(random.integers(len(seen)))]
    height, width = sizes[int(random.choice(len(sizes), p=shares))]
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = jpeg_image(Pictures.fromarray(pixels))
    if dup_ratio > 0:
        seen.append(image)
    return image
