"""What one image costs a media worker: milliseconds of one core by phase, and the whole path.

    python benchmarks/image_path.py [--size 1080 1920] [--rounds 20] [--quality 90] [--json]

The picture is a synthetic photograph (smooth colours with noise) as a JPEG. Phases are medians;
"whole" is `prepare()` from base64 text to patches, as a worker runs it. The aim is at most 60 ms
of one core for 1080p.
"""

import argparse
import base64
import io
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from glimt.media.decode import decode_image
from glimt.media.patches import patchify
from glimt.media.prepare import prepare
from glimt.media.resize import resize
from glimt.media.sizes import smart_resize
from glimt.wire import ImageSettings, MediaJob, MediaLimits


def make_jpeg(height: int, width: int, quality: int) -> bytes:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def median_ms(action: Callable[[], object], rounds: int) -> float:
    """Of CPU time: other work on the machine does not count."""
    times = []
    for _ in range(rounds + 2):
        began_s = time.process_time()
        action()
        times.append((time.process_time() - began_s) * 1000)
    return statistics.median(times[2:])


def measure(height: int, width: int, quality: int, rounds: int) -> dict[str, float]:
    settings, limits = ImageSettings(), MediaLimits()
    jpeg = make_jpeg(height, width, quality)
    text = base64.b64encode(jpeg)
    job = MediaJob(job_id=1, kind="image", is_base64=True, settings=settings, limits=limits)
    pixels = decode_image(memoryview(jpeg), settings, limits)
    new_height, new_width = smart_resize(2, height, width, settings)
    resized = resize(pixels[None], new_height, new_width)
    out = np.empty(resized.numel(), np.uint8)
    return {
        "jpeg_kib": len(jpeg) / 1024,
        "decode_ms": median_ms(lambda: decode_image(memoryview(jpeg), settings, limits), rounds),
        "resize_ms": median_ms(lambda: resize(pixels[None], new_height, new_width), rounds),
        "patches_ms": median_ms(lambda: patchify(resized, out, 14, 2), rounds),
        "whole_ms": median_ms(lambda: prepare(job, text), rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(1080, 1920), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(*arguments.size, arguments.quality, arguments.rounds)
    if arguments.json:
        print(json.dumps(found))
        return
    height, width = arguments.size
    print(f"image path, {width} x {height} JPEG of {found['jpeg_kib']:.0f} KiB, one core:")
    for phase in ("decode", "resize", "patches", "whole"):
        print(f"  {phase:<8} {found[f'{phase}_ms']:7.1f} ms")
    print("  aim for the whole of 1080p: 60 ms")


if __name__ == "__main__":
    main()
