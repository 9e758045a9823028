"""The one video decoder: encoded bytes -> the sampled frames as RGB, upright.

What is allowed: MP4, MOV, WebM, Matroska and GIF, holding H.264, HEVC, VP8, VP9, AV1, MPEG-4 or
GIF. The container follows from the magic bytes and FFmpeg is told to try that one only, with all
protocols off, so that no playlist can name a file or an address.

The file is demultiplexed once, which costs little and tells how many frames there are, when they
are shown and where decoding can begin. Then only what the wanted frames need is decoded: from the
last key frame before each, without the frames that no other refers to.
"""

import bisect
import io
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from glimt.errors import BadMedia
from glimt.media.decode import WHITE, laid_over
from glimt.wire import MediaLimits

Pixels = NDArray[np.uint8]

UNKNOWN_FPS = 24.0  # what transformers' processors assume
_MAX_FPS = 1000.0
_MAX_PACKETS = 1_000_000
_THREADS = 2

_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "gif"})
_DECODERS = "h264,hevc,vp8,libvpx,vp9,libvpx-vp9,av1,libdav1d,mpeg4,gif"
_MP4_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"})


class Video:
    """An opened video. `num_frames` >= 1, `fps` > 0; use it as a context manager."""

    def __init__(self, data: memoryview, limits: MediaLimits, deadline_s: float) -> None:
        """Open and probe. `deadline_s` is of time.monotonic().

        Raises BadMedia for containers and codecs that are not allowed, damage, and videos that
        are too long or too large.
        """
        self._limits = limits
        self._deadline_s = deadline_s
        self.num_fed_packets = 0  # what decoding has cost
        self._container = _open(data)
        try:
            self._stream = self._pick_stream()
            self._read_packets()
            self.fps = frame_rate(self._stream.average_rate)
            self._check_duration()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Video":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the decoder."""
        self._container.close()

    @property
    def num_frames(self) -> int:
        """Frames of the video, counted, not as its header says."""
        return len(self._keys)

    def frames(self, indices: Sequence[int]) -> Iterator[Pixels]:
        """The frames [H, W, 3] of these ascending, different indices, all of one size.

        A frame that the decoder leaves out is replaced by its successor. Raises BadMedia.
        """
        wanted = [self._keys[index] for index in indices]
        size: tuple[int, ...] | None = None
        last: Pixels | None = None
        num_given = 0
        for key, frame in self._decoded(wanted):
            while num_given < len(wanted) and wanted[num_given] <= key:
                last = _rgb(frame)
                size = size or last.shape
                if last.shape != size:
                    raise BadMedia("the video changes its size on the way")
                num_given += 1
                yield last
        if last is None:
            raise BadMedia("the video holds no frame that can be decoded")
        for _ in range(num_given, len(wanted)):
            yield last

    def _pick_stream(self) -> Any:
        for stream in self._container.streams.video:
            if not stream.disposition & Disposition.attached_pic:
                break
        else:
            raise BadMedia("there is no video in the file")
        codec = stream.codec_context
        if codec is None or codec.codec.canonical_name not in _CODECS:
            raise BadMedia(
                "the video's codec is not understood: send H.264, HEVC, VP8, VP9, AV1 or MPEG-4"
            )
        self._check_size(codec.width, codec.height)
        # The header may lie about the size; the decoder then refuses the frame.
        codec.options = {"max_pixels": str(self._limits.max_frame_pixels)}
        codec.thread_type = "AUTO"
        codec.thread_count = _THREADS
        return stream

    def _check_size(self, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise BadMedia("the video's frames have no pixels")
        if width * height > self._limits.max_frame_pixels:
            raise BadMedia(
                f"the video's frames have {width} x {height} pixels; "
                f"at most {self._limits.max_frame_pixels:,} in all are accepted"
            )

    def _read_packets(self) -> None:
        """Keep all packets, the keys of the frames in the order shown, and where to begin."""
        self._packets: list[Any] = []
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    self._packets.append(packet)
                if packet.is_corrupt or len(self._packets) > _MAX_PACKETS:
                    raise BadMedia("the video is damaged or incomplete")
                self._check_deadline()
        except av.FFmpegError:
            raise BadMedia("the video is damaged or incomplete") from None
        times = [packet.pts for packet in self._packets if not packet.is_discard]
        if not times:
            raise BadMedia("the video has no frames")
        # Without usable times, frames are told apart by counting them.
        self._is_timed = None not in times and len(set(times)) == len(times)
        self._keys: list[int] = sorted(times) if self._is_timed else list(range(len(times)))
        self._entries = [(self._keys[0], 0)]  # (time, packet) where decoding can begin
        if self._is_timed and self._stream.codec_context.codec.canonical_name != "gif":
            self._entries = [
                (packet.pts, place)
                for place, packet in enumerate(self._packets)
                if packet.is_keyframe and packet.pts is not None
            ] or self._entries

    def _check_duration(self) -> None:
        seconds = self.num_frames / self.fps
        if self._is_timed and self._stream.time_base is not None:
            seconds = max(seconds, float((self._keys[-1] - self._keys[0]) * self._stream.time_base))
        if seconds > self._limits.max_video_seconds:
            raise BadMedia(
                f"the video lasts {seconds:.0f} seconds; "
                f"at most {self._limits.max_video_seconds:.0f} are accepted"
            )

    def _decoded(self, wanted: list[int]) -> Iterator[tuple[int, Any]]:
        """(key, frame) in the order shown: at least the wanted ones, but for failures."""
        codec = self._stream.codec_context
        keys = set(wanted)
        place = num_seen = num_passed = 0
        codec.flush_buffers()
        while num_passed < len(wanted):
            entry = self._entry(wanted[num_passed])
            if entry > place:
                codec.flush_buffers()
                place = entry
            packet = self._packets[place] if place < len(self._packets) else None
            if packet is not None and self._is_timed:
                codec.skip_frame = "DEFAULT" if packet.pts in keys else "NONREF"
            place += 1
            for frame in self._feed(codec, packet):
                key = frame.pts if self._is_timed else num_seen
                num_seen += 1
                if key is None:
                    continue
                yield key, frame
                num_passed = bisect.bisect_right(wanted, key, num_passed)
            if packet is None:
                return

    def _entry(self, key: int) -> int:
        """The packet of the last key frame that is not shown after `key`."""
        place = bisect.bisect_right(self._entries, (key, len(self._packets))) - 1
        return self._entries[max(place, 0)][1]

    def _feed(self, codec: Any, packet: Any) -> list[Any]:
        self._check_deadline()
        self.num_fed_packets += 1
        try:
            frames: list[Any] = codec.decode(packet)
        except (av.FFmpegError, EOFError):
            raise BadMedia("the video is damaged or incomplete") from None
        for frame in frames:
            self._check_size(frame.width, frame.height)
        return frames

    def _check_deadline(self) -> None:
        if time.monotonic() > self._deadline_s:
            raise BadMedia("the video takes too long to decode; send a shorter or smaller one")


def frame_rate(declared: Fraction | None) -> float:
    """Frames a second; 24 where the file does not say. Raises BadMedia for nonsense."""
    if declared is None or declared == 0:
        return UNKNOWN_FPS
    if not 0 < declared <= _MAX_FPS:
        raise BadMedia("the video's frame rate makes no sense")
    return float(declared)


def _open(data: memoryview) -> Any:
    try:
        return av.open(
            io.BytesIO(data),
            format=_container_format(data),
            container_options={"protocol_whitelist": "none", "codec_whitelist": _DECODERS},
        )
    except (av.FFmpegError, EOFError, ValueError):
        raise BadMedia("the video is damaged or incomplete") from None


def _container_format(data: memoryview) -> str:
    """FFmpeg's name of the container that the first bytes announce. Raises BadMedia."""
    head = bytes(data[:12])
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if head[4:8] in _MP4_BOXES:
        return "mov"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    raise BadMedia("not a video that is understood: send MP4, WebM, MKV, MOV or animated GIF")


def _rgb(frame: Any) -> Pixels:
    if any(component.is_alpha for component in frame.format.components):
        pixels = laid_over(frame.to_ndarray(format="rgba"), WHITE)
    else:
        pixels = frame.to_ndarray(format="rgb24")
    # Phones store how they were held; players turn the picture, so do we.
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
