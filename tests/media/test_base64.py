"""Media as base64: decoded strictly, and if that cannot be, with the reason and what to write."""

import base64

import msgspec
import pytest

from glimt.errors import BadMedia
from glimt.media.prepare import prepare
from glimt.wire import ImageSettings, MediaJob, MediaLimits
from tests.support.media import encoded, pattern

JOB = MediaJob(
    job_id=1, kind="image", settings=ImageSettings(), limits=MediaLimits(), is_base64=True
)
TEXT = base64.b64encode(encoded(pattern(60, 50), "PNG"))


def test_base64_is_what_it_stands_for() -> None:
    plain = prepare(msgspec.structs.replace(JOB, is_base64=False), base64.b64decode(TEXT))
    assert prepare(JOB, TEXT).buffer.tobytes() == plain.buffer.tobytes()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (base64.encodebytes(base64.b64decode(TEXT)), "white space; write it in one line"),
        (b" " + TEXT, "white space"),
        (TEXT.replace(b"/", b"%2F").replace(b"=", b"%3D") + b"%3D", "percent-encoded"),
        (b"data:image/png;base64," + TEXT, "only what is behind the comma belongs here"),
        (TEXT[:41], "it was cut, or lacks its padding"),
        (TEXT[:40] + b"!*" + TEXT[42:], "it holds other characters than A-Z a-z 0-9 + /"),
        (b"", "the image is empty"),
    ],
)
def test_what_is_no_base64_says_why(text: bytes, why: str) -> None:
    with pytest.raises(BadMedia) as refused:
        prepare(JOB, text)
    assert why in refused.value.message
