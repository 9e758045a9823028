"""What the media flags come to: preprocessing, counts per prompt, shared memory for pixels."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from glimt.checkpoint import Checkpoint
from glimt.config import MediaSettings, parse_object
from glimt.errors import BadSettings
from glimt.wire import ImageSettings

DEFAULT_COUNTS = {"image": 32, "video": 2}

_PAGE_BYTES = 4096
_SIZES = (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels"))
_VIDEO_NAMES = ("fps", "max_frames")


def pixel_settings(
    media: MediaSettings, checkpoint: Checkpoint
) -> tuple[ImageSettings, ImageSettings]:
    """The checkpoint's preprocessing of images and of videos with the operator's changes.

    Raises BadSettings.
    """
    processor = parse_object(media.mm_processor_kwargs)
    size = _section(processor, "size", "--mm-processor-kwargs")
    image_changes = {ours: size.pop(theirs) for theirs, ours in _SIZES if theirs in size}
    io = parse_object(media.media_io_kwargs)
    video = _section(io, "video", "--media-io-kwargs")
    video_changes = {name: video.pop(name) for name in _VIDEO_NAMES if name in video}
    if "num_frames" in video and (count := video.pop("num_frames")) != -1:
        video_changes["num_frames"] = count or -1  # no frames at all are refused below
    if unknown := [*processor, *size, *io, *video]:
        raise BadSettings(
            "--mm-processor-kwargs and --media-io-kwargs: unknown " + ", ".join(map(repr, unknown))
        )
    return (
        _changed(checkpoint.image, image_changes, "--mm-processor-kwargs"),
        _changed(checkpoint.video, video_changes, "--media-io-kwargs"),
    )


def _section(kwargs: dict[str, Any], key: str, flag: str) -> dict[str, Any]:
    section = kwargs.pop(key, {})
    if not isinstance(section, dict):
        raise BadSettings(f'{flag}: "{key}" must be an object, not {section!r}')
    return dict(section)


def _changed(settings: ImageSettings, changes: Mapping[str, Any], flag: str) -> ImageSettings:
    try:
        changed = msgspec.convert({**msgspec.to_builtins(settings), **changes}, ImageSettings)
    except msgspec.ValidationError as error:
        raise BadSettings(f"{flag}: {error}") from None
    token_pixels = _token_pixels(changed)
    for is_wrong, problem in (
        (changed.min_pixels < 1, "shortest_edge must be at least 1"),
        (changed.max_pixels < token_pixels, f"longest_edge must be at least {token_pixels}"),
        (changed.min_pixels > changed.max_pixels, "shortest_edge is larger than longest_edge"),
        (not 0.001 <= changed.fps < math.inf, "fps must be at least 0.001"),
        (changed.max_frames < 1, "max_frames must be at least 1"),
        (
            not 0 <= changed.num_frames <= changed.max_frames,
            f"num_frames must be -1, or 1 to {changed.max_frames}",
        ),
    ):
        if is_wrong:
            raise BadSettings(f"{flag}: {problem}")
    return changed


def counts_per_prompt(media: MediaSettings) -> dict[str, int]:
    """--limit-mm-per-prompt: a number, or vLLM's {"count": n, …}, for each modality.

    Raises BadSettings.
    """
    counts = dict(DEFAULT_COUNTS)
    for modality, value in parse_object(media.limit_mm_per_prompt).items():
        count = value.get("count") if isinstance(value, dict) else value
        if modality not in counts or type(count) is not int or count < 0:
            raise BadSettings(
                f"--limit-mm-per-prompt: {modality!r}: {value!r} is not understood; "
                'write {"image": 8, "video": 1}'
            )
        counts[modality] = count
    return counts


def local_media_root(path: str | None) -> str | None:
    """--allowed-local-media-path without links. Raises BadSettings."""
    if path is None or path == "":
        return None
    if not Path(path).is_dir():
        raise BadSettings(f"--allowed-local-media-path {path}: there is no such folder")
    return str(Path(path).resolve())


def max_tokens(settings: ImageSettings) -> int:
    """Tokens of the largest span: limits are volumes, and a still counts two frames."""
    return settings.max_pixels // _token_pixels(settings)


def _token_pixels(settings: ImageSettings) -> int:
    """Pixels (all frames together) that become one token."""
    return settings.temporal_patch_size * (settings.patch_size * settings.merge_size) ** 2


def arena_bytes(
    media: MediaSettings,
    image: ImageSettings,
    video: ImageSettings,
    counts: Mapping[str, int],
    max_model_len: int,
) -> int:
    """Size of the memory that pixels pass through.

    Raises BadSettings if it cannot hold the media of one request that every other limit lets
    through: such a request would be told to try again for ever.
    """
    wanted = math.ceil(media.mm_processor_cache_gb * 2**30 / _PAGE_BYTES) * _PAGE_BYTES
    # Three bytes a pixel; of a still, one frame is kept.
    of_image = 3 * image.max_pixels // image.temporal_patch_size
    of_video = 3 * video.max_pixels
    frames = video.temporal_patch_size if counts["video"] else 1
    of_token = 3 * frames * _token_pixels(video) // video.temporal_patch_size
    needed = min(
        counts["image"] * (of_image + _PAGE_BYTES) + counts["video"] * (of_video + _PAGE_BYTES),
        max_model_len * of_token + sum(counts.values()) * _PAGE_BYTES,
    )
    if wanted < needed:
        raise BadSettings(
            f"--mm-processor-cache-gb {media.mm_processor_cache_gb:g}: the media of one request "
            f"may take {needed / 2**20:.1f} MiB ({counts['image']} images and {counts['video']} "
            f"videos within {max_model_len:,} tokens); use at least "
            f"{math.ceil(needed / 2**30 * 10_000) / 10_000:g}, or lower --limit-mm-per-prompt or "
            "--max-model-len"
        )
    return max(wanted, _PAGE_BYTES)
