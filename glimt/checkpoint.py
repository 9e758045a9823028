"""The JSON side of a checkpoint: every file but the weights, read once and checked. Torch-free.

    config.json                    the network; models/config.py gives it its meaning
    generation_config.json         sampling defaults; optional
    preprocessor_config.json       pixels of images, or a section of processor_config.json
    video_preprocessor_config.json pixels and frames of videos, or a section likewise
    chat_template.jinja            or a key of tokenizer_config.json
    tokenizer.json

Nothing here or in `models/weights.py` opens a path that leads out of the folder.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimt.errors import BadCheckpoint
from glimt.wire import ImageSettings

__all__ = [
    "Checkpoint",
    "checkpoint_file",
    "merge_overrides",
    "read_checkpoint",
    "read_json",
]

Json = dict[str, Any]

_MAX_JSON_BYTES = 256 * 2**20
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
# The families' numbers, for checkpoints that lack a file. The image limit differs from the
# default of transformers' class, the published files agree on this one.
_IMAGE_DEFAULTS = ImageSettings()
_VIDEO_DEFAULTS = ImageSettings(max_pixels=47_040_000)
_SAMPLERS = {"Glm46V": "glm46v", "Glm4v": "glm4v"}


@dataclass(frozen=True)
class Checkpoint:
    """What the files around the weights say."""

    path: Path
    config: Json
    generation_config: Json
    preprocessor_config: Json
    chat_template: str | None  # None = the checkpoint has none
    image: ImageSettings
    video: ImageSettings
    tokenizer_path: Path
    notes: tuple[str, ...]  # what was missing and how it was made up for; print at start


def read_checkpoint(path: Path, overrides: Mapping[str, Any] | None = None) -> Checkpoint:
    """Read and check the folder `path`; `overrides` (`--hf-overrides`) lie over config.json.

    Raises BadCheckpoint naming the file and the cure.
    """
    notes: list[str] = []
    config = merge_overrides(read_json(checkpoint_file(path, "config.json")), overrides or {})
    processor = _optional_json(path, "processor_config.json")
    images = _optional_json(path, "preprocessor_config.json")
    images = images or _section(processor, "image_processor")
    videos = _optional_json(path, "video_preprocessor_config.json")
    videos = videos or _section(processor, "video_processor")
    if not images:
        notes.append("no preprocessor_config.json: the family's usual image limits are used")
    if not videos:
        notes.append("no video_preprocessor_config.json: the family's usual video limits are used")
    sampler = _sampler(videos, images, processor)
    if sampler is None:
        sampler = "glm4v"
        notes.append("no file names a video processor: frames are sampled as for GLM-4.5V")
    image = _image_settings(images, _IMAGE_DEFAULTS, "preprocessor_config.json", sampler)
    video = _image_settings(videos, _VIDEO_DEFAULTS, "video_preprocessor_config.json", sampler)
    _check_patches(config, image, video)
    return Checkpoint(
        path=path,
        config=config,
        generation_config=_optional_json(path, "generation_config.json"),
        preprocessor_config=images,
        chat_template=_chat_template(path),
        image=image,
        video=video,
        tokenizer_path=checkpoint_file(path, "tokenizer.json"),
        notes=tuple(notes),
    )


def merge_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Json:
    """A copy of `config` with `overrides` laid over it, objects key by key."""
    merged = dict(config)
    for key, value in overrides.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merge_overrides(below, value)
        merged[key] = value
    return merged


def checkpoint_file(folder: Path, name: str) -> Path:
    """The regular file `name` of a checkpoint folder, proven to lie inside it.

    Links are followed only to places inside the folder or, in the hub's cache, inside the
    repository's own blobs. Raises BadCheckpoint for anything else, also for pipes and devices.
    """
    path = folder / name
    if not _FILE_NAME.fullmatch(name):
        raise BadCheckpoint(f"{name!r} is not the name of a file in the checkpoint's folder")
    if not path.exists():
        if path.is_symlink():
            raise BadCheckpoint(f"{path} is a link to nothing; download the checkpoint again")
        raise BadCheckpoint(f"{path} is missing; copy it from the model's repository")
    target = path.resolve()
    root = folder.resolve()
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    if not any(target.is_relative_to(allowed) for allowed in roots):
        raise BadCheckpoint(f"{path} is a link that leads out of the folder; copy the file instead")
    if not target.is_file():
        raise BadCheckpoint(f"{path} is not a regular file")
    return path


def read_json(path: Path) -> Json:
    """The object in a JSON file. Raises BadCheckpoint if it is unreadable or not an object."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise BadCheckpoint(f"{path} is larger than any such file should be")
        content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise BadCheckpoint(f"{path} is missing; copy it from the model's repository") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(
            f"{path} is not readable as JSON ({error}); download it again"
        ) from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path} holds a {type(content).__name__}, not an object")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _optional_json(folder: Path, name: str) -> Json:
    path = folder / name
    if not path.exists() and not path.is_symlink():
        return {}
    return read_json(checkpoint_file(folder, name))


def _section(values: Json, key: str) -> Json:
    section = values.get(key)
    return section if isinstance(section, dict) else {}


# ----------------------------------------------------------------------------------- template


def _chat_template(folder: Path) -> str | None:
    """chat_template.jinja, else chat_template.json, else tokenizer_config.json's key."""
    path = folder / "chat_template.jinja"
    if path.exists() or path.is_symlink():
        try:
            return checkpoint_file(folder, path.name).read_text("utf-8")
        except (OSError, ValueError) as error:
            raise BadCheckpoint(f"{path} is not readable as text ({error})") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = _optional_json(folder, name).get("chat_template")
        if isinstance(template, list):  # several, by name
            named = {item.get("name"): item.get("template") for item in template}
            template = named.get("default")
        if isinstance(template, str):
            return template
    return None


# --------------------------------------------------------------------------------- processors


def _sampler(*files: Json) -> str | None:
    """Which generation's rules for frames apply: by the class names, the video file's first."""
    for file in files:
        for key in ("video_processor_type", "processor_class", "image_processor_type"):
            for prefix, sampler in _SAMPLERS.items():
                if str(file.get(key, "")).startswith(prefix):
                    return sampler
    return None


def _image_settings(
    values: Json, defaults: ImageSettings, name: str, sampler: str
) -> ImageSettings:
    """Limits and sizes of one preprocessor file; all problems of the file in one error."""
    problems: list[str] = []
    size = _section(values, "size")

    def number(section: Mapping[str, Any], key: str, default: float, least: float = 1) -> float:
        value = section.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or value >= 2**53:
            problems.append(f"{key} must be a number, not {value!r}")
            return default
        if value < least:
            problems.append(f"{key} must be at least {least}, not {value!r}")
            return default
        return value

    settings = ImageSettings(
        min_pixels=int(number(size, "shortest_edge", defaults.min_pixels)),
        max_pixels=int(number(size, "longest_edge", defaults.max_pixels)),
        patch_size=int(number(values, "patch_size", defaults.patch_size)),
        temporal_patch_size=int(number(values, "temporal_patch_size", 2)),
        merge_size=int(number(values, "merge_size", defaults.merge_size)),
        sampler=sampler,
        fps=float(number(values, "fps", defaults.fps, least=0.001)),
        max_duration_s=float(number(values, "max_duration", defaults.max_duration_s)),
    )
    if settings.min_pixels > settings.max_pixels:
        problems.append("size.shortest_edge is larger than size.longest_edge")
    problems += _foreign_steps(values)
    if problems:
        raise BadCheckpoint(f"{name} cannot be used:", problems)
    return settings


def _foreign_steps(values: Json) -> list[str]:
    """Steps of the pixel path that the family always does, switched off or done otherwise."""
    problems = [
        f"{step} is false; Glimt always does this step"
        for step in ("do_resize", "do_rescale", "do_normalize")
        if values.get(step) is False
    ]
    if values.get("resample", 3) != 3:
        problems.append(f"resample {values['resample']!r} is not bicubic (3)")
    factor = values.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-6:
        problems.append(f"rescale_factor {factor!r} is not 1/255")
    return problems


def _check_patches(config: Json, image: ImageSettings, video: ImageSettings) -> None:
    """The preprocessor and the vision tower must cut pixels alike."""
    vision = _section(config, "vision_config")
    problems = []
    for name, settings in (("preprocessor", image), ("video preprocessor", video)):
        for key, found in (
            ("patch_size", settings.patch_size),
            ("temporal_patch_size", settings.temporal_patch_size),
            ("spatial_merge_size", settings.merge_size),
        ):
            wanted = vision.get(key, found)
            if found != wanted:
                problems.append(f"{key} is {found} for the {name}, {wanted} in vision_config")
    if problems:
        raise BadCheckpoint("the preprocessor files do not fit config.json:", problems)
