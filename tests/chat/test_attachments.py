"""Local files become data: URLs with the right type, or an error that names them."""

import base64
import io
import os
from pathlib import Path

import pytest
from PIL import Image

from glimt.chat.attachments import BadAttachment, attach, describe


def picture(form: str, size: tuple[int, int] = (60, 40), orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, form, exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("form", "media_type"),
    [("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "tiff")],
)
def test_an_image_is_what_its_content_says_whatever_its_name(
    tmp_path: Path, form: str, media_type: str
) -> None:
    file = tmp_path / "picture.dat"
    file.write_bytes(picture(form))
    attachment = attach("image", str(file))
    head, _, data = attachment.url.partition(",")
    assert head == f"data:image/{media_type};base64"
    assert base64.b64decode(data) == file.read_bytes()
    assert attachment.size == (60, 40)
    assert attachment.part() == {"type": "image_url", "image_url": {"url": attachment.url}}


def test_a_photograph_taken_upright_has_its_upright_size(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(picture("JPEG", orientation=6))
    assert attach("image", str(file)).size == (40, 60)


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"\0\0\0\x20ftypisom", "video/mp4"),
        (b"\0\0\0\x14ftypqt  ", "video/quicktime"),
        (b"\x1aE\xdf\xa3....B\x82\x84webm", "video/webm"),
        (b"\x1aE\xdf\xa3....B\x82\x88matroska", "video/x-matroska"),
        (b"GIF89a", "image/gif"),
    ],
)
def test_a_video_is_what_its_content_says(tmp_path: Path, content: bytes, media_type: str) -> None:
    file = tmp_path / "clip"
    file.write_bytes(content)
    attachment = attach("video", file.as_uri())
    assert attachment.url.startswith(f"data:{media_type};base64,")
    assert attachment.part()["type"] == "video_url"


def test_addresses_are_sent_as_they_are() -> None:
    for url in ("https://example.com/a.png", "data:image/png;base64,AAAA"):
        assert attach("image", url).url == url


def test_what_cannot_be_sent_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "empty.png").touch()
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    (tmp_path / "icon.ico").write_bytes(picture("ICO", (16, 16)))
    (tmp_path / "huge.png").touch()
    os.truncate(tmp_path / "huge.png", 257 << 20)
    for name, reason in {
        "missing.png": "there is no file",
        ".": "is a folder",
        "notes.pdf": "not an image that can be read; send PNG",
        "empty.png": "is empty",
        "clip.mp4": "is a video: give it with /video",
        "icon.ico": "is ICO; send PNG",
        "huge.png": "at most 268.4 MB",
    }.items():
        with pytest.raises(BadAttachment, match=reason) as caught:
            attach("image", str(tmp_path / name))
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(BadAttachment, match="not a video"):
        attach("video", str(tmp_path / "notes.pdf"))
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    with pytest.raises(BadAttachment, match="is an image: give it with /image"):
        attach("video", str(tmp_path / "a.png"))
    with pytest.raises(BadAttachment, match="only files and http"):
        attach("image", "ftp://example.com/a.png")
    with pytest.raises(BadAttachment, match="not a regular file"):
        attach("image", "/dev/zero")


def test_an_attachment_is_described_by_name_size_and_tokens(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(picture("PNG"))
    assert describe(attach("image", str(file)), 6) == f"image: {file}, 60 × 40, 1 kB, 6 tokens"
    assert describe(attach("image", "http://x/a.png"), None) == "image: http://x/a.png"
