"""How a request wants its images and videos prepared, within what the operator allows."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from glimt.errors import InvalidRequest, Unsupported
from glimt.wire import ImageSettings

MAX_FPS = 30.0

_Edge = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Pixels = Annotated[int, Meta(ge=1, le=2**30 - 1)]
_Shade = Annotated[int, Meta(ge=0, le=255)]


class PixelSize(msgspec.Struct, frozen=True, kw_only=True):
    """Volumes, as in preprocessor_config.json: time times height times width, in pixels. A still
    counts as two frames."""

    shortest_edge: _Edge | None = None
    longest_edge: _Edge | None = None


class ImageWishes(msgspec.Struct, frozen=True, kw_only=True):
    """Of images. `min_pixels` and `max_pixels` are of the picture itself: half of `size`."""

    size: PixelSize | None = None
    min_pixels: _Pixels | None = None
    max_pixels: _Pixels | None = None


class ImageIoWishes(msgspec.Struct, frozen=True, kw_only=True):
    """Of the reading of images: red, green and blue behind transparent pixels; default: white."""

    rgba_background_color: tuple[_Shade, _Shade, _Shade] | None = None


class VideoWishes(msgspec.Struct, frozen=True, kw_only=True):
    """Of videos. `num_frames`: so many, spread evenly over the video; -1: as the model's rule has
    it, which may choose from all frames."""

    size: PixelSize | None = None
    fps: Annotated[float, Meta(ge=0.001, le=MAX_FPS)] | None = None
    max_frames: Annotated[int, Meta(ge=2, le=2**31 - 1)] | None = None
    num_frames: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None


class ProcessorKwargs(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the preprocessing: `size`, or `min_pixels` and `max_pixels`, of images, `fps` and
    `max_frames` of videos; or both kinds by name."""

    size: PixelSize | None = None
    min_pixels: _Pixels | None = None
    max_pixels: _Pixels | None = None
    fps: Annotated[float, Meta(ge=0.001, le=MAX_FPS)] | None = None
    max_frames: Annotated[int, Meta(ge=2, le=2**31 - 1)] | None = None
    images_kwargs: ImageWishes | None = None
    videos_kwargs: VideoWishes | None = None


class MediaIoKwargs(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the reading of media."""

    image: ImageIoWishes | None = None
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
        "image": [
            (
                path,
                ImageWishes(
                    size=processor.size,
                    min_pixels=processor.min_pixels,
                    max_pixels=processor.max_pixels,
                ),
            )
        ],
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
        if kind == "image" and io.image is not None and io.image.rgba_background_color is not None:
            settings = msgspec.structs.replace(settings, background=io.image.rgba_background_color)
        if settings != ours:
            changed[kind] = settings
    return changed


def _changed(
    settings: ImageSettings, limit: ImageSettings, wish: ImageWishes | VideoWishes, path: str
) -> ImageSettings:
    changes: dict[str, Any] = {}
    if wish.size is not None:
        changes = _sizes(settings, limit, wish.size, f"{path}.size")
    if isinstance(wish, ImageWishes):
        changes |= _pixels(settings, limit, wish, path)
    else:
        if wish.num_frames is not None:
            changes["num_frames"] = _number_of_frames(wish, limit, f"{path}.num_frames")
        if wish.fps is not None:
            if settings.sampler == "glm46v":
                raise Unsupported(
                    f"{path}.fps: this model's frames are chosen by the video's length; use "
                    "max_frames",
                    param=f"{path}.fps",
                )
            changes |= {"fps": wish.fps, "num_frames": 0}
        if wish.max_frames is not None:
            _check_most(wish.max_frames, limit.max_frames, f"{path}.max_frames")
            changes["max_frames"] = wish.max_frames
    return msgspec.structs.replace(settings, **changes)


def _number_of_frames(wish: VideoWishes, limit: ImageSettings, path: str) -> int:
    """0 = the sampler's own. Raises InvalidRequest."""
    count = wish.num_frames or 0
    if count == 0:
        raise InvalidRequest(f"{path} is 0; at least 1, or -1", param=path)
    if count > 0 and wish.fps is not None:
        raise InvalidRequest(f"{path} and fps exclude each other", param=path)
    _check_most(count, limit.max_frames, path)
    return max(count, 0)


def _pixels(
    settings: ImageSettings, limit: ImageSettings, wish: ImageWishes, path: str
) -> dict[str, Any]:
    """`min_pixels` and `max_pixels` as volumes."""
    if wish.min_pixels is None and wish.max_pixels is None:
        return {}
    if wish.size is not None:
        raise InvalidRequest(f"{path}: send size, or min_pixels and max_pixels", param=path)
    return _volumes(
        settings,
        limit,
        (wish.min_pixels, f"{path}.min_pixels"),
        (wish.max_pixels, f"{path}.max_pixels"),
        frames=settings.temporal_patch_size,
    )


def _sizes(
    settings: ImageSettings, limit: ImageSettings, size: PixelSize, path: str
) -> dict[str, Any]:
    return _volumes(
        settings,
        limit,
        (size.shortest_edge, f"{path}.shortest_edge"),
        (size.longest_edge, f"{path}.longest_edge"),
        frames=1,
    )


def _volumes(
    settings: ImageSettings,
    limit: ImageSettings,
    least: tuple[int | None, str],
    most: tuple[int | None, str],
    *,
    frames: int,
) -> dict[str, Any]:
    """Volumes of (value in pixels of `frames` frames, its path). A most below the least lowers that
    too, unless both are given."""
    (low, low_path), (high, high_path) = least, most
    if high is not None:
        _check_most(high, limit.max_pixels // frames, high_path)
    volume = settings.max_pixels if high is None else high * frames
    of_token = settings.temporal_patch_size * (settings.patch_size * settings.merge_size) ** 2
    if volume < of_token:
        raise InvalidRequest(
            f"{high_path} is {volume // frames}, one token needs {of_token // frames}",
            param=high_path,
        )
    if low is not None and low * frames > volume:
        raise InvalidRequest(
            f"{low_path} is {low}, more than the longest of {volume // frames}", param=low_path
        )
    least_volume = settings.min_pixels if low is None else low * frames
    return {"max_pixels": volume, "min_pixels": min(least_volume, volume)}


def _check_most(value: int, most: int, path: str) -> None:
    if value > most:
        raise InvalidRequest(f"{path} is {value}, this server allows {most}", param=path)
