"""Small pictures for the report: images, and of a video four of its frames side by side.

For people only, and made of one's own files: what the model sees is decoded by `glimt.media`, which
needs torch.
"""

import base64
import io
from collections.abc import Iterator
from itertools import islice

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image, ImageOps

from glimt.evaluation.boxes import SCALE
from glimt.evaluation.tasks import MediaFiles, Task, media_files

_MAX_SIDE = 288  # pixels
_MAX_FRAME_SIDE = 128
_NUM_FRAMES = 4
_QUALITY = 70
_MAX_FRAMES = 600  # of a video that are looked at


class Thumbnails:
    """Makes them until `budget_bytes` are used up; a file that cannot be shown has none."""

    def __init__(self, files: MediaFiles, budget_bytes: int) -> None:
        self._files = files
        self._left = budget_bytes

    @property
    def is_full(self) -> bool:
        """Nothing more is made."""
        return self._left <= 0

    def pictures(self, task: Task) -> Iterator[str | None]:
        """One data: URL for each medium of a task, or None where there is none to show."""
        for kind, name in media_files(task):
            yield self._picture(name, is_video=kind == "video_url")

    def _picture(self, name: str, *, is_video: bool) -> str | None:
        if self.is_full:
            return None
        try:
            data = self._files.read(name)
            image = _strip(data) if is_video else _still(data)
        except (FFmpegError, OSError, ValueError, Image.DecompressionBombError):
            return None
        url = _data_url(image)
        self._left -= len(url)
        return url


def _still(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        white = Image.new("RGBA", upright.size, "white")
        flat = Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")
    flat.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    return flat


def _strip(data: bytes) -> Image.Image:
    frames: list[Image.Image] = []
    with av.open(io.BytesIO(data), "r") as container:
        for frame in islice(container.decode(video=0), _MAX_FRAMES):
            image = Image.fromarray(frame.to_ndarray(format="rgb24"))
            image.thumbnail((_MAX_FRAME_SIDE, _MAX_FRAME_SIDE), Image.Resampling.LANCZOS)
            frames.append(image)
    if not frames:
        raise ValueError("no frame in it")
    places = np.linspace(0, len(frames) - 1, _NUM_FRAMES).round().astype(int)
    chosen = [frames[index] for index in dict.fromkeys(places.tolist())]
    width, height = chosen[0].size
    strip = Image.new("RGB", (len(chosen) * (width + 2) - 2, height), "white")
    for index, image in enumerate(chosen):
        strip.paste(image, (index * (width + 2), 0))
    return strip


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def rectangle(box: tuple[float, float, float, float]) -> dict[str, float]:
    """A box as an SVG rectangle in a drawing of SCALE × SCALE; outside parts are cut off."""
    x1, y1, x2, y2 = (min(float(SCALE), max(0.0, each)) for each in box)
    left, right = sorted((x1, x2))
    top, bottom = sorted((y1, y2))
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}
