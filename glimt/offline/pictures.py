"""Pictures that a program gives as objects: encoded without loss, then as all others go."""

import asyncio
import io
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import msgspec
import pybase64
from PIL import Image, PngImagePlugin

from glimt.errors import BadMedia
from glimt.frontend.prompt import MediaPreparer, MediaSource, PreparedMedia
from glimt.offline.messages import Picture
from glimt.wire import MediaLimits

_ORIENTATION_TAG = 0x0112
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"})
# Modes that PNG lacks; the server's decoder turns them into these as well.
_CONVERTED = {"CMYK": "RGB", "YCbCr": "RGB", "RGBX": "RGB"}
_CONVERTED |= {"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}


def room_for_pictures(limits: MediaLimits) -> MediaLimits:
    """Limits under which an image of the most pixels fits uncompressed: these bytes come from the
    program itself, not through a network."""
    raw_bytes = 4 * limits.max_image_pixels + 2**20
    return msgspec.structs.replace(limits, max_image_bytes=max(limits.max_image_bytes, raw_bytes))


class PictureMedia:
    """The media of one conversation: `pictures` by their address, the rest through `others`.

    `encoder` has one thread: Pillow loads images on first use, which two threads must not do to
    the same one.
    """

    def __init__(
        self,
        others: MediaPreparer,
        pictures: Mapping[str, Picture],
        limits: MediaLimits,
        encoder: Executor,
    ) -> None:
        self._others = others
        self._pictures = pictures
        self._limits = limits
        self._encoder = encoder

    async def prepare(self, source: MediaSource) -> PreparedMedia:
        """As `MediaPreparer` says; BadMedia also for pictures that cannot be read."""
        picture = self._pictures.get(source.url)
        if picture is not None:
            loop = asyncio.get_running_loop()
            url = await loop.run_in_executor(self._encoder, self._data_url, picture, source)
            source = replace(source, url=url)
        return await self._others.prepare(source)

    def _data_url(self, picture: Picture, source: MediaSource) -> str:
        try:
            data = self._read(picture, source) if isinstance(picture, Path) else _png(picture)
        except BadMedia as error:
            raise BadMedia(error.message, param=source.param) from None
        except Exception as error:  # Pillow raises anything at all on damaged files
            raise BadMedia(
                f"{source.param}: cannot be read: {error}", param=source.param
            ) from error
        kind = f"{source.kind}/*" if isinstance(picture, Path) else "image/png"
        return f"data:{kind};base64,{pybase64.b64encode_as_string(data)}"

    def _read(self, path: Path, source: MediaSource) -> bytes:
        limits = self._limits
        limit = limits.max_video_bytes if source.kind == "video" else limits.max_image_bytes
        if path.stat().st_size > limit:
            raise BadMedia(f"the {source.kind} {path} is larger than {limit:,} bytes")
        return path.read_bytes()


def _png(image: Image.Image) -> bytes:
    """The picture's pixels, palette, transparency and orientation, uncompressed."""
    image.load()
    exif = Image.Exif()
    if (orientation := image.getexif().get(_ORIENTATION_TAG, 1)) != 1:
        exif[_ORIENTATION_TAG] = orientation
    if image.mode in _CONVERTED:
        image = image.convert(_CONVERTED[image.mode])
    if image.mode not in _PNG_MODES:
        raise BadMedia(f"images of mode {image.mode} are not understood; convert it to 8-bit RGB")
    buffer = io.BytesIO()
    no_texts = PngImagePlugin.PngInfo()
    image.save(
        buffer, "PNG", compress_level=0, exif=exif.tobytes() if exif else b"", pnginfo=no_texts
    )
    return buffer.getvalue()
