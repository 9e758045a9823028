"""`glimt bench mm`: what the pictures of a workload cost a media worker, stage by stage."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pybase64
import torch
from numpy.typing import NDArray

from glimt.bench.data.matching import without_effect
from glimt.bench.data.prompt import Image
from glimt.bench.data.source import prompts
from glimt.bench.options import DataOptions, DatasetName
from glimt.bench.settings import percentiles
from glimt.errors import BadSettings
from glimt.media.decode import decode_image
from glimt.media.patches import patchify
from glimt.media.prepare import prepare
from glimt.media.resize import resize
from glimt.media.sizes import smart_resize
from glimt.wire import ImageSettings, MediaJob, MediaLimits

STAGES = ("base64", "decode", "resize", "patches", "whole")
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PictureOptions(DataOptions):
    """Which pictures."""

    dataset_name: DatasetName = "visionarena-like"
    """Kind of prompts."""


@dataclass(frozen=True, kw_only=True)
class MediaOptions:
    """How many pictures."""

    num_prompts: int = 10
    """Prompts, of which every image is prepared."""
    seed: int = 0
    """Of the prompts."""
    metric_percentiles: str = "99"
    """Percentiles, e.g. 50,90,99."""
    output_json: str | None = None
    """File for the result, with the times of every picture."""


def measure_media(wishes: MediaOptions, data: DataOptions, tell: Callable[[str], None]) -> int:
    """Measure and print. Raises BadSettings."""
    ranks = percentiles(wishes.metric_percentiles)
    for note in without_effect(data):
        tell(f"note: {note}")
    torch.set_num_threads(1)  # as a worker runs
    images = [
        image
        for prompt in prompts(data, None, wishes.num_prompts, wishes.seed)
        for image in prompt.turns[0].images
    ]
    if not images:
        raise BadSettings(f"--dataset-name {data.dataset_name} has no images")
    _stages(images[0])  # first uses cost more
    table = np.array([_stages(image) for image in images]) * 1e3
    megapixels = sum(image.pixels for image in images) / 1e6
    tell(f"{len(images)} images of {megapixels / len(images):.2f} megapixels, one core, ms:")
    for line in media_table(table, megapixels, ranks):
        tell(line)
    if wishes.output_json is not None:
        result: dict[str, Any] = {"num_images": len(images), "megapixels": megapixels}
        times = {
            f"{name}_ms": values.tolist() for name, values in zip(STAGES, table.T, strict=True)
        }
        Path(wishes.output_json).write_bytes(msgspec.json.encode(result | times))
    return 0


def media_table(
    table: FloatArray, megapixels: float, ranks: Sequence[float] = (99.0,)
) -> Iterator[str]:
    """A row for each stage. `table` is [images, stages] in ms; `megapixels` is of all images."""
    names = ("mean", "median", "std", *(f"P{rank:g}" for rank in ranks), "per MP")
    yield " ".join([f"{'stage':<8}", *(f"{name:>8}" for name in names)])
    for name, values in zip(STAGES, table.T, strict=True):
        numbers = (values.mean(), np.median(values), values.std(), *np.percentile(values, ranks))
        cells = " ".join(f"{number:8.2f}" for number in numbers)
        yield f"{name:<8} {cells} {values.sum() / megapixels:8.2f}"


def _stages(image: Image) -> list[float]:
    """Seconds of processor time of each stage of one image, and of all as a worker does them."""
    text = image.url.partition(",")[2].encode()
    settings, limits = ImageSettings(), MediaLimits()
    seconds = []

    def timed(action: Callable[[], object]) -> None:
        began_s = time.process_time()
        action()
        seconds.append(time.process_time() - began_s)

    timed(lambda: pybase64.b64decode(text))
    encoded = memoryview(pybase64.b64decode(text))
    timed(lambda: decode_image(encoded, settings, limits))
    pixels = decode_image(encoded, settings, limits)
    height, width = smart_resize(2, pixels.shape[0], pixels.shape[1], settings)
    timed(lambda: resize(pixels[None], height, width))
    resized = resize(pixels[None], height, width)
    out = np.empty(resized.numel(), np.uint8)
    timed(lambda: patchify(resized, out, 14, 2))
    job = MediaJob(job_id=1, kind="image", is_base64=True, settings=settings, limits=limits)
    timed(lambda: prepare(job, text))
    return seconds
