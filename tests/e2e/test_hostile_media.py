"""Pictures, videos and addresses that nobody should send: a 400 that names the part."""

import base64
import io
import os
import socket
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.hostile import LITTLE_WORK_S, Canary, ask, image_part, with_parts
from tests.support.serving import Serving


@pytest.fixture(scope="module")
def canary(serving: Serving) -> Canary:
    return Canary(serving)


def picture(width: int, height: int, mode: str = "RGB", kind: str = "PNG", **options: Any) -> bytes:
    """Noise in a mode and a format."""
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    buffer = io.BytesIO()
    (image if mode == "I;16" else image.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    """A PNG that promises more than it holds."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + head + extra + rows + chunk(b"IEND", b"")


SMALL = picture(56, 56)
SMALL_TEXT = base64.b64encode(SMALL).decode()
GZIPPED = zlib.compress(bytes(1 << 26), 9)
VIDEO = "data:video/mp4;base64,"

BLOCKED = """
http://localhost:PORT/ http://[::1]:PORT/ http://[::ffff:127.0.0.1]:PORT/ http://[::127.0.0.1]/
http://[64:ff9b::a9fe:a9fe]/ http://[2002:7f00:1::]/ http://[fe80::1%25eth0]/ http://[::]/
http://169.254.169.254/ http://100.100.100.200/ http://100.64.0.1/ http://224.0.0.1/
http://255.255.255.255/ http://2130706433:PORT/ http://0x7f000001:PORT/ http://0177.0.0.1:PORT/
http://127.1:PORT/ http://0:PORT/ http://\u2460\u2461\u2466.0.0.1:PORT/ http://127\u30020.0.1:PORT/
http://ok.example\\@127.0.0.1:PORT/ http://ok.example@127.0.0.1:PORT/ HTTP://127.0.0.1:PORT/
http://127.0.0.1:PORT#@ok.example/ http://127.0.0.1\u200b:PORT/ ftp://x/ gopher://x/ //h/x
javascript:1 http://8.8.8.8:22/ http://8.8.8.8:0/ http://8.8.8.8:65536/ http://8.8.8.8:80a/
http:///x http:// file:///etc/passwd file:///proc/self/environ file:///dev/zero /etc/passwd x.png
~/x.png file:ROOT/in.png file://localhostROOT/in.png file://hostROOT/in.png file:///ROOT/in.png
file://ROOT/../outside.png file://ROOT/%2e%2e/outside.png file://ROOT/%252e%252e/outside.png
file://ROOT/..%2foutside.png file://ROOT/link.png file://ROOT/folder/outside.png file://ROOT/proc
file://ROOT/fifo file://ROOT/null file://ROOT file://ROOT/ file://ROOT/sparse
file://ROOT-secret/in.png file://ROOT/in.png%00 file://ROOT/%ff%fe file://ROOT/in.png?x
""".split()  # noqa: SIM905


def test_no_address_leads_into_the_house(
    serving: Serving, canary: Canary, media_folder: Path
) -> None:
    outside, secret = media_folder.parent, Path(f"{media_folder}-secret")
    secret.mkdir()
    for path in (outside / "outside.png", media_folder / "in.png", secret / "in.png"):
        path.write_bytes(SMALL)
    (media_folder / "link.png").symlink_to(outside / "outside.png")
    (media_folder / "folder").symlink_to(outside)
    (media_folder / "proc").symlink_to("/proc/self/environ")
    (media_folder / "null").symlink_to("/dev/null")
    os.mkfifo(media_folder / "fifo")
    with (media_folder / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = str(listener.getsockname()[1])
        for url in [*BLOCKED, "", f"http://127.0.0.1:{port}\n/", "http://127.0.0.1\0/"]:
            address = url.replace("PORT", port).replace("ROOT", str(media_folder))
            reply = ask(serving, with_parts(image_part(address)))
            assert reply.status == 400, address
            assert reply.error["param"] == "messages[0].content[0].image_url", address
        with pytest.raises(BlockingIOError):
            listener.accept()
    inside = with_parts(image_part(f"file://{media_folder}/in.png"))
    assert ask(serving, inside).status == 200
    canary.sings()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_cut_anywhere_is_a_400(serving: Serving, canary: Canary, kind: str) -> None:
    whole = picture(90, 70, kind=kind)
    for tenth in range(10):
        part = image_part(data_url(whole[: len(whole) * tenth // 10]))
        assert ask(serving, with_parts(part)).status == 400, tenth
    canary.sings()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB", "RGBA", "CMYK"])
def test_the_smallest_pictures_are_seen_in_every_mode(serving: Serving, mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    for width, height in ((1, 1), (1, 27), (27, 27), (28, 28)):
        part = image_part(data_url(picture(width, height, mode, kind)))
        assert ask(serving, with_parts(part)).status == 200, (width, height)


PICTURES: dict[str, tuple[str, int]] = {
    "nothing": (data_url(b""), 400),
    "one byte": (data_url(b"a"), 400),
    "28x5600": (data_url(picture(28, 5600)), 200),
    "28x5601": (data_url(picture(28, 5601)), 400),
    "5000x1": (data_url(picture(5000, 1)), 400),
    "3.6 Gpx": (data_url(png(60_000, 60_000)), 400),
    "no width": (data_url(png(0, 5)), 400),
    "2^31 square": (data_url(png(2**31 - 1, 2**31 - 1)), 400),
    "text bomb": (data_url(png(30, 30, chunk(b"zTXt", b"a\0\0" + GZIPPED))), 400),
    "profile bomb": (data_url(png(30, 30, chunk(b"iCCP", b"a\0\0" + GZIPPED))), 400),
    "bad EXIF": (data_url(picture(30, 60, kind="JPEG", exif=b"Exif\0\0" + bytes(99))), 200),
    "icon": (data_url(picture(64, 64, kind="ICO")), 400),
    "JPEG 2000": (data_url(picture(64, 64, kind="JPEG2000")), 400),
    "PDF": (data_url(picture(64, 64, kind="PDF")), 400),
    "EPS": (data_url(picture(64, 64, kind="EPS")), 400),
    "SVG": (data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), 400),
    "junk in base64": (f"data:image/png;base64,{SMALL_TEXT[:50]}!*{SMALL_TEXT[50:]}", 400),
    "odd base64": (f"data:image/png;base64,{SMALL_TEXT[:-5]}", 400),
    "no comma": ("data:image/png;base64", 400),
    "no base64": ("data:,hello", 400),
    "a page": (f"data:text/html;base64,{SMALL_TEXT}", 400),
    "upper-case scheme": (f"DATA:image/png;base64,{SMALL_TEXT}", 200),
    "1 MB of parameters": (f"data:image/png;{'a=b;' * 250_000}base64,{SMALL_TEXT}", 400),
    "100 KB address": ("http://example.com/" + "a" * 100_000, 400),
}


@pytest.mark.parametrize(("url", "status"), PICTURES.values(), ids=PICTURES)
def test_an_odd_picture_is_seen_or_refused_with_little_work(
    serving: Serving, canary: Canary, url: str, status: int
) -> None:
    before_s = canary.work_s()
    reply = ask(serving, with_parts(image_part(url)))
    assert reply.status == status
    assert canary.work_s() - before_s < LITTLE_WORK_S
    canary.sings()


VIDEOS = {
    "text": b"hello",
    "HLS": b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\nfile:///etc/passwd\n",
    "concat": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    "DASH": b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
    "head of an MP4": b"\0\0\0\x18ftypmp42" + bytes(12),
}


@pytest.mark.parametrize("data", VIDEOS.values(), ids=VIDEOS)
def test_what_is_no_video_is_a_400(serving: Serving, canary: Canary, data: bytes) -> None:
    url = VIDEO + base64.b64encode(data).decode()
    reply = ask(serving, with_parts({"type": "video_url", "video_url": {"url": url}}))
    assert reply.status == 400
    assert reply.error["param"] == "messages[0].content[0].video_url"
    canary.sings()


@pytest.mark.parametrize(("count", "status"), [(32, 200), (33, 400), (250, 400), (300, 400)])
def test_as_many_pictures_as_allowed(
    serving: Serving, canary: Canary, count: int, status: int
) -> None:
    parts = [image_part(data_url(picture(28, 28)))] * count
    assert ask(serving, with_parts(*parts)).status == status
    canary.sings()
