"""How a request wants its images and videos prepared, within what the operator allows."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from glimt.errors import InvalidRequest, Unsupported
from glimt.wire import ImageSettings

MAX_FPS = 30.0

_Edge = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class PixelSize(msgspec.Struct, frozen=True, kw_only=True):
    """Volumes, as in preprocessor_config.json: time times height times width, in pixels. A still
    counts as two frames."""

    shortest_edge: _Edge | None = None
    longest_edge: _Edge | None = None


class ImageWishes(msgspec.Struct, frozen=True, kw_only=True):
    """Of images."""

    size: PixelSize | None = None


class VideoWishes(msgspec.Struct, frozen=True, kw_only=True):
    """Of videos. `num_frames` -1: all frames are there to choose from, as they always are."""

    size: PixelSize | None = None
    fps: Annotated[float, Meta(ge=0.001, le=MAX_FPS)] | None = None
    max_frames: Annotated[int, Meta(ge=2, le=2**31 - 1)] | None = None
    num_frames: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None


class ProcessorKwargs(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the preprocessing: `size` of images, `fps` and `max_frames` of videos; or both
    kinds by name."""

    size: PixelSize | None = None
    fps: Annotated[float, Meta(ge=0.001, le=MAX_FPS)] | None = None
    max_frames: Annotated[int, Meta(ge=2, le=2**31 - 1)] | None = None
    images_kwargs: ImageWishes | None = None
    videos_kwargs: VideoWishes | None = None


class MediaIoKwargs(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the reading of media."""

    video: VideoWishes | None = None


def media_settings(
    processor: ProcessorKwargs | None,
    io: MediaIoKwargs | None,
    operators: Mapping[str, ImageSettings],
) -> dict[str, ImageSettings]:
    """Settings by kind (image, video), for the kinds that a request wants otherwise.

    Raises InvalidRequest beyond the operator's limits, Unsupported for what the checkpoint's
    sampler does not take.
    """
    processor, io = processor or ProcessorKwargs(), io or MediaIoKwargs()
    path = "mm_processor_kwargs"
    wishes: dict[str, list[tuple[str, ImageWishes | VideoWishes]]] = {
        "image": [(path, ImageWishes(size=processor.size))],
        "video": [(path, VideoWishes(fps=processor.fps, max_frames=processor.max_frames))],
    }
    if processor.images_kwargs is not None:
        wishes["image"].append((f"{path}.images_kwargs", processor.images_kwargs))
    if processor.videos_kwargs is not None:
        wishes["video"].append((f"{path}.videos_kwargs", processor.videos_kwargs))
    if io.video is not None:
        wishes["video"].append(("media_io_kwargs.video", io.video))
    changed: dict[str, ImageSettings] = {}
    for kind, ours in operators.items():
        settings = ours
        for where, wish in wishes[kind]:
            settings = _changed(settings, ours, wish, where)
        if settings != ours:
            changed[kind] = settings
    return changed


def _changed(
    settings: ImageSettings, limit: ImageSettings, wish: ImageWishes | VideoWishes, path: str
) -> ImageSettings:
    changes = dict(_sizes(settings, limit, wish.size, f"{path}.size")) if wish.size else {}
    if isinstance(wish, VideoWishes):
        if wish.num_frames not in (None, -1):
            raise Unsupported(
                f"{path}.num_frames is not supported but for -1; use max_frames",
                param=f"{path}.num_frames",
            )
        if wish.fps is not None:
            if settings.sampler == "glm46v":
                raise Unsupported(
                    f"{path}.fps: this model's frames are chosen by the video's length; use "
                    "max_frames",
                    param=f"{path}.fps",
                )
            changes["fps"] = wish.fps
        if wish.max_frames is not None:
            _check_most(wish.max_frames, limit.max_frames, f"{path}.max_frames")
            changes["max_frames"] = wish.max_frames
    return msgspec.structs.replace(settings, **changes)


def _sizes(
    settings: ImageSettings, limit: ImageSettings, size: PixelSize, path: str
) -> dict[str, Any]:
    """A longest edge below the shortest that holds lowers that too, unless both are given."""
    most, least = size.longest_edge or settings.max_pixels, size.shortest_edge
    _check_most(most, limit.max_pixels, f"{path}.longest_edge")
    of_token = settings.temporal_patch_size * (settings.patch_size * settings.merge_size) ** 2
    if most < of_token:
        raise InvalidRequest(
            f"{path}.longest_edge is {most}, one token needs {of_token}",
            param=f"{path}.longest_edge",
        )
    if least is not None and least > most:
        raise InvalidRequest(
            f"{path}.shortest_edge is {least}, more than the longest of {most}",
            param=f"{path}.shortest_edge",
        )
    return {"max_pixels": most, "min_pixels": min(least or settings.min_pixels, most)}


def _check_most(value: int, most: int, path: str) -> None:
    if value > most:
        raise InvalidRequest(f"{path} is {value}, this server allows {most}", param=path)
