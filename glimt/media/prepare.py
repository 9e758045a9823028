"""One medium from its encoded bytes to patches: a pure function, in a worker as well as offline."""

import re
import time
from dataclasses import dataclass

import numpy as np
import pybase64
from numpy.typing import NDArray

from glimt.errors import BadMedia
from glimt.media.decode import decode_image
from glimt.media.patches import patchify
from glimt.media.resize import resize
from glimt.media.sampling import sample, timestamps
from glimt.media.sizes import smart_resize
from glimt.media.video import Video
from glimt.wire import ImageSettings, MediaFrame, MediaJob

FRAMES_PER_STEP = 2
_WHITE_SPACE = re.compile(rb"[ \t\r\n]")
_ALPHABET = re.compile(rb"[A-Za-z0-9+/_-]*=*")


@dataclass(frozen=True)
class Prepared:
    """Patches of all frames of a medium, one after another in `buffer` (uint8 [nbytes])."""

    frames: tuple[MediaFrame, ...]
    buffer: NDArray[np.uint8]
    decode_s: float
    resize_s: float  # with cutting into patches


def prepare(job: MediaJob, payload: bytes | memoryview) -> Prepared:
    """Decode, resize, cut. A still gives one frame, a video one for each two sampled frames.

    Raises BadMedia.
    """
    data = _encoded_bytes(job, payload)
    return _prepare_video(job, data) if job.kind == "video" else _prepare_image(job, data)


def _encoded_bytes(job: MediaJob, payload: bytes | memoryview) -> memoryview:
    is_video = job.kind == "video"
    limit = job.limits.max_video_bytes if is_video else job.limits.max_image_bytes
    nbytes = len(payload) // 4 * 3 - 2 if job.is_base64 else len(payload)
    if nbytes > limit:
        raise BadMedia(f"the {job.kind} is larger than {limit:,} bytes")
    if job.is_base64:
        try:
            payload = pybase64.b64decode(payload, validate=True)
        except ValueError:
            raise BadMedia(f"not base64: {_why_no_base64(bytes(payload))}") from None
    if len(payload) == 0:
        raise BadMedia(f"the {job.kind} is empty")
    return memoryview(payload)


def _why_no_base64(text: bytes) -> str:
    if text.startswith(b"data:"):
        return "it begins with a data: of its own; only what is behind the comma belongs here"
    if _WHITE_SPACE.search(text):
        return "it holds white space; write it in one line (base64 -w0)"
    if b"%" in text:
        return "it is percent-encoded; write + / = as they are"
    if _ALPHABET.fullmatch(text):
        return "its length is no multiple of 4: it was cut, or lacks its padding (=)"
    return "it holds other characters than A-Z a-z 0-9 + / and = at the end"


def _prepare_image(job: MediaJob, data: memoryview) -> Prepared:
    settings = job.settings
    began_s = time.perf_counter()
    pixels = decode_image(data, settings, job.limits)
    decoded_s = time.perf_counter()
    height, width = smart_resize(
        settings.temporal_patch_size, pixels.shape[0], pixels.shape[1], settings
    )
    buffer = np.empty(height * width * 3, np.uint8)
    patchify(resize(pixels[None], height, width), buffer, settings.patch_size, settings.merge_size)
    frame = _frame(settings, height, width, num_frames=1, place=0, timestamp="")
    return Prepared((frame,), buffer, decoded_s - began_s, time.perf_counter() - decoded_s)


def _prepare_video(job: MediaJob, data: memoryview) -> Prepared:
    settings, limits = job.settings, job.limits
    began_s = time.perf_counter()
    resize_s = 0.0
    with Video(data, limits, time.monotonic() + limits.decode_timeout_s) as video:
        indices = sample(video.num_frames, video.fps, settings, limits.max_video_frames)
        texts = timestamps(indices, video.fps, settings.sampler)
        decoded = video.frames(tuple(dict.fromkeys(indices)))
        first = next(decoded)
        height, width = smart_resize(len(indices), first.shape[0], first.shape[1], settings)
        step_bytes = FRAMES_PER_STEP * height * width * 3
        buffer = np.empty(len(texts) * step_bytes, np.uint8)
        for step in range(len(texts)):
            earlier = first if step == 0 else next(decoded)
            # An odd number of different frames: the last step shows its frame twice.
            later = next(decoded, earlier)
            resized_s = time.perf_counter()
            patchify(
                resize(np.stack((earlier, later)), height, width),
                buffer[step * step_bytes : (step + 1) * step_bytes],
                settings.patch_size,
                settings.merge_size,
            )
            resize_s += time.perf_counter() - resized_s
    frames = tuple(
        _frame(settings, height, width, num_frames=FRAMES_PER_STEP, place=step, timestamp=text)
        for step, text in enumerate(texts)
    )
    return Prepared(frames, buffer, time.perf_counter() - began_s - resize_s, resize_s)


def _frame(
    settings: ImageSettings, height: int, width: int, *, num_frames: int, place: int, timestamp: str
) -> MediaFrame:
    nbytes = num_frames * height * width * 3
    return MediaFrame(
        grid_h=height // settings.patch_size,
        grid_w=width // settings.patch_size,
        num_frames=num_frames,
        offset=place * nbytes,
        nbytes=nbytes,
        timestamp=timestamp,
    )
