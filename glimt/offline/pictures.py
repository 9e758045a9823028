"""Pictures that a program gives as objects: encoded without loss, then as all others go."""

import asyncio
import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
from PIL import Image, PngImagePlugin

from glimt.errors import BadMedia
from glimt.frontend.fetch import FetchPolicy, MediaFetcher, Payload
from glimt.frontend.prompt import MediaSource
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


class PictureFetcher(MediaFetcher):
    """Fetches what the server's fetcher fetches, and pictures that the program holds."""

    def __init__(self, policy: FetchPolicy, limits: MediaLimits) -> None:
        """`limits` of pictures; those of `policy` are for all that has a real address."""
        super().__init__(policy)
        self._picture_limits = limits
        self._pictures: dict[str, Picture] = {}
        # One thread: Pillow loads images on first use, which two must not do to the same one.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="glimt-pictures")

    @contextmanager
    def showing(self, pictures: Mapping[str, Picture]) -> Iterator[None]:
        """Within this, `pictures` can be fetched by the addresses they are given under."""
        self._pictures.update(pictures)
        try:
            yield
        finally:
            for url in pictures:
                del self._pictures[url]

    async def fetch(self, source: MediaSource) -> Payload:
        """As MediaFetcher; BadMedia also for pictures that cannot be read or encoded."""
        picture = self._pictures.get(source.url)
        if picture is None:
            return await super().fetch(source)
        loop = asyncio.get_running_loop()
        try:
            return Payload(await loop.run_in_executor(self._encoder, self._bytes, picture, source))
        except BadMedia as error:
            raise BadMedia(error.message, param=source.param) from None
        except Exception as error:  # Pillow raises anything at all on damaged files
            text = f"the {source.kind} cannot be read: {error}"
            raise BadMedia(text, param=source.param) from error

    async def close(self) -> None:
        """As MediaFetcher."""
        await super().close()
        self._encoder.shutdown(wait=False, cancel_futures=True)

    def _bytes(self, picture: Picture, source: MediaSource) -> bytes:
        return self._read(picture, source) if isinstance(picture, Path) else _png(picture)

    def _read(self, path: Path, source: MediaSource) -> bytes:
        limits = self._picture_limits
        limit = limits.max_video_bytes if source.kind == "video" else limits.max_image_bytes
        if not path.is_file():
            raise BadMedia(f"there is no file {path}")
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
