"""Encoded pictures and clips for tests, made on the spot."""

import io
import tempfile
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def pattern(height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth colours with some noise, [H, W, 3]: neither flat nor incompressible."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))
    noise = rng.integers(-8, 9, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def encoded(image: Image.Image | Pixels, file_format: str = "PNG", **options: Any) -> bytes:
    """The file's bytes."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def clip(
    frames: Sequence[Pixels],
    container: str = "mp4",
    codec: str = "libx264",
    rate: int = 30,
    pix_fmt: str = "yuv420p",
    container_options: dict[str, str] | None = None,
    **options: str,
) -> bytes:
    """A video of these frames [H, W, 3]."""
    with tempfile.NamedTemporaryFile() as file:  # not memory: faststart reads what it wrote
        _write_clip(file.name, frames, container, codec, rate, pix_fmt, container_options, options)
        return file.read()


def _write_clip(
    path: str,
    frames: Sequence[Pixels],
    container: str,
    codec: str,
    rate: int,
    pix_fmt: str,
    container_options: dict[str, str] | None,
    options: dict[str, str],
) -> None:
    with av.open(path, "w", format=container, options=container_options or {}) as output:
        stream: Any = output.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.options = options
        stream.codec_context.thread_count = 1
        for pixels in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)


def grey_clip(num_frames: int, height: int = 48, width: int = 64, **options: Any) -> bytes:
    """A clip whose frame i is flat grey of 4 * i (mod 256): frames can be told apart."""
    return clip(
        [np.full((height, width, 3), 4 * i % 256, np.uint8) for i in range(num_frames)], **options
    )
