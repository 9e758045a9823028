"""Pictures to data: addresses, as clients send them."""

import hashlib
import io

import numpy as np
import pybase64
from PIL import Image as Pictures

from glimt.bench.data.prompt import Image
from glimt.errors import BadSettings

JPEG_QUALITY = 75  # Pillow's default, which is what vLLM's client sends


def to_jpeg(picture: Pictures.Image, quality: int = JPEG_QUALITY) -> bytes:
    """Encode as a baseline JPEG."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def to_png(picture: Pictures.Image) -> bytes:
    """Encode as PNG, at the compression level that fast writers use."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def as_image(encoded: bytes, kind: str, pixels: int) -> Image:
    """An encoded picture as a data: address; `kind` is jpeg or png."""
    return Image(f"data:image/{kind};base64,{pybase64.b64encode_as_string(encoded)}", pixels)


def marked(image: Image, mark: str) -> Image:
    """The same image with one block of pixels that depends on `mark`, in the same format.

    The pixels change and not only the bytes, since some servers look images up by their pixels.
    Raises BadSettings for images by address, which the client does not hold.
    """
    head, found, data = image.url.partition(";base64,")
    if not found or not head.startswith("data:image/"):
        raise BadSettings("--cache-bust needs images as data; those given by address cannot change")
    with Pictures.open(io.BytesIO(pybase64.b64decode(data))) as opened:
        picture = opened.convert("RGB")
    digest = hashlib.sha256(mark.encode()).digest()
    bits = np.unpackbits(np.frombuffer(digest, np.uint8)).reshape(16, 16) * np.uint8(255)
    block = Pictures.fromarray(bits).resize((64, 64), Pictures.Resampling.NEAREST)
    picture.paste(block, (0, 0))
    if head == "data:image/png":
        return as_image(to_png(picture), "png", image.pixels)
    return as_image(to_jpeg(picture), "jpeg", image.pixels)


def jpeg_image(picture: Pictures.Image) -> Image:
    """A picture as vLLM's client would send it."""
    return as_image(to_jpeg(picture), "jpeg", picture.width * picture.height)
