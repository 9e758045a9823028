"""Images and videos for a question: local files become data: URLs, addresses stay addresses."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pybase64
from PIL import ExifTags, Image

from glimt.errors import GlimtError

Kind = Literal["image", "video"]

MAX_FILE_BYTES = 256 << 20
_IMAGE_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # what some cameras write: a JPEG with more behind it
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}
_KNOWN = {
    "image": "PNG, JPEG, WebP, GIF, BMP or TIFF",
    "video": "MP4, MOV, WebM, MKV or GIF",
}
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class BadAttachment(GlimtError):
    """The file or address cannot be sent; the message says why."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """An image or video as it will be sent."""

    kind: Kind
    name: str  # the file or address, as the user gave it
    url: str
    content: bytes | None = None  # of a local file
    size: tuple[int, int] | None = None  # (width, height) of a local image, upright

    def part(self) -> dict[str, Any]:
        """The part of a message that holds it."""
        return {"type": f"{self.kind}_url", f"{self.kind}_url": {"url": self.url}}


def attach(kind: Kind, name: str) -> Attachment:
    """The file or the http(s):, data: or file: address `name`, ready to be sent.

    Raises BadAttachment naming it if it is missing, unreadable, too large or of another kind.
    """
    scheme = urlsplit(name).scheme.lower() if "://" in name or name.startswith("data:") else ""
    if scheme in ("http", "https"):
        return Attachment(kind, name, name)
    if scheme == "data":
        return Attachment(kind, f"{name[:24]}…", name)
    path = Path(unquote(urlsplit(name).path)) if scheme == "file" else Path(name).expanduser()
    if scheme not in ("", "file"):
        raise BadAttachment(f"{name}: only files and http:, https: and data: addresses can be sent")
    content = _read(path, name)
    size = None
    if kind == "image":
        media_type, size = _look_at_image(content, name)
    else:
        media_type = _video_type(content, name)
    encoded = pybase64.b64encode(content).decode("ascii")
    return Attachment(kind, name, f"data:{media_type};base64,{encoded}", content, size)


def describe(attachment: Attachment, num_tokens: int | None) -> str:
    """One line about it: name, size, and how many tokens it will be, if that is known."""
    parts = [attachment.name]
    if attachment.size is not None:
        parts.append("{} × {}".format(*attachment.size))
    if attachment.content is not None:
        parts.append(num_bytes_text(len(attachment.content)))
    if num_tokens is not None:
        parts.append(f"{num_tokens} tokens")
    return f"{attachment.kind}: {', '.join(parts)}"


def num_bytes_text(num_bytes: int) -> str:
    """A size as people write it: "340 kB", "2.4 MB"."""
    if num_bytes < 1_000_000:
        return f"{max(1, round(num_bytes / 1000))} kB"
    return f"{num_bytes / 1e6:.1f} MB"


def _read(path: Path, name: str) -> bytes:
    try:
        if path.is_dir():
            raise BadAttachment(f"{name} is a folder, not a file")
        if not path.exists():
            raise BadAttachment(f"there is no file {name}")
        if not path.is_file():
            raise BadAttachment(f"{name} is not a regular file")
        num_bytes = path.stat().st_size
        if num_bytes > MAX_FILE_BYTES:
            raise BadAttachment(
                f"{name} has {num_bytes_text(num_bytes)}; at most {num_bytes_text(MAX_FILE_BYTES)} "
                "can be sent inside a request: make it smaller, or give its http(s) address"
            )
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadAttachment(f"{name} cannot be read: {reason}") from None
    if not content:
        raise BadAttachment(f"{name} is empty")
    return content


def _look_at_image(content: bytes, name: str) -> tuple[str, tuple[int, int]]:
    """The MIME type by the content, whatever the name says, and the size as it will be seen."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # how many pixels are too many is the server's to say
            with Image.open(io.BytesIO(content)) as image:
                form, (width, height) = image.format or "", image.size
                orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Image.DecompressionBombError:
        raise BadAttachment(f"{name} has too many pixels; make it smaller") from None
    except Exception:  # decoders raise whatever they like on damaged files
        raise BadAttachment(_not(name, "image", _is_video(content))) from None
    if form not in _IMAGE_TYPES:
        raise BadAttachment(f"{name} is {form}; send {_KNOWN['image']}")
    return _IMAGE_TYPES[form], (height, width) if orientation in _SIDEWAYS else (width, height)


def _video_type(content: bytes, name: str) -> str:
    head = content[:4096]
    if head[4:8] == b"ftyp":
        return "video/quicktime" if head[8:12] == b"qt  " else "video/mp4"
    if head.startswith(b"\x1aE\xdf\xa3"):  # EBML; the document type says which
        return "video/webm" if b"webm" in head else "video/x-matroska"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    try:
        _look_at_image(content, name)
    except BadAttachment:
        raise BadAttachment(_not(name, "video", False)) from None
    raise BadAttachment(f"{name} is an image: give it with /image or --image")


def _is_video(content: bytes) -> bool:
    return content[4:8] == b"ftyp" or content.startswith(b"\x1aE\xdf\xa3")


def _not(name: str, kind: Kind, is_video: bool) -> str:
    if is_video:
        return f"{name} is a video: give it with /video or --video"
    article = "an" if kind == "image" else "a"
    return f"{name} is not {article} {kind} that can be read; send {_KNOWN[kind]}"
