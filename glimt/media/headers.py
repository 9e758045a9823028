"""What an encoded image says of itself, read without a decoder."""

import zlib

from glimt.errors import BadMedia

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)
_PNG_SIGNATURE_BYTES = 8
_PNG_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})


def image_format(data: memoryview) -> str:
    """Pillow's name of the format that the first bytes announce. Raises BadMedia."""
    head = bytes(data[:16])
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    raise BadMedia("not an image that is understood: send PNG, JPEG, WebP, GIF, BMP or TIFF")


def webp_size(data: memoryview) -> tuple[int, int]:
    """(width, height) of the canvas (RFC 9649, section 2). Raises BadMedia."""
    head = bytes(data[:30])
    if len(head) < 30:
        raise BadMedia("the WEBP image is damaged or incomplete")
    chunk = head[12:16]
    if chunk == b"VP8X":
        return (
            1 + int.from_bytes(head[24:27], "little"),
            1 + int.from_bytes(head[27:30], "little"),
        )
    if chunk == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return (
        int.from_bytes(head[26:28], "little") & 0x3FFF,
        int.from_bytes(head[28:30], "little") & 0x3FFF,
    )


def check_png(data: memoryview) -> None:
    """Walk the chunks: the file must reach its IEND, and the critical chunks their checksums,
    which Pillow does not insist on (PNG third edition, 5.3). Raises BadMedia."""
    place = _PNG_SIGNATURE_BYTES
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        kind = bytes(data[place + 4 : place + 8])
        end = place + 8 + length
        if end + 4 > len(data):
            break
        if kind in _PNG_CRITICAL:
            checksum = int.from_bytes(data[end : end + 4], "big")
            if zlib.crc32(data[place + 4 : end]) != checksum:
                break
        if kind == b"IEND":
            return
        place = end + 4
    raise BadMedia("the PNG image is damaged or incomplete")
