"""`inspect`: which stored tensor fills which parameter, in which format; or one list of problems.

Whether a linear is FP8 is decided by the tensors present (a `weight_scale` beside the weight),
never by the ignore list of config.json, whose names are not the tensors' names.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glimt.errors import BadCheckpoint
from glimt.models.config import ModelConfig
from glimt.models.names import (
    WHOLE,
    Parameter,
    Shape,
    Share,
    Source,
    fp8_modules,
    parameters,
    scale_name,
)
from glimt.models.shards import StoredTensor, read_headers

Quantization = Literal["fp8"] | None

_FLOATS = ("BF16", "F16", "F32")
_FP8 = "F8_E4M3"
_MAX_LISTED = 20  # of each kind of problem
# Left over from text models whose extra layer drafts tokens; transformers passes over them too.
_LEFTOVER = re.compile(r"model\.language_model\.layers\.(46|92)\..*")
_SPELLINGS = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.layers.", "model.language_model.layers."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.norm.", "model.language_model.norm."),
    ("visual.", "model.visual."),
)
# Tensors that only other quantisations store.
_FOREIGN = (
    ".weight_scale_inv",
    ".weight_packed",
    ".weight_zero_point",
    ".input_scale",
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    ".absmax",
    ".SCB",
)


@dataclass(frozen=True, slots=True)
class Task:
    """Read one source and place it. quantize: make FP8 of it and fill the scales as well."""

    source: Source
    stored_name: str
    parameter: str
    action: Literal["copy", "scale", "quantize"]
    num_bytes: int  # that are read


@dataclass(frozen=True)
class WeightPlan:
    """What `load` will do. `fp8`: our modules that are FP8; the model must be built with it."""

    fp8: frozenset[str]
    quantized_here: frozenset[str]  # those of them that the checkpoint stores in 16 or 32 bits
    format: str  # for people: bfloat16 · float16 · float32 · fp8 · fp8 (made at load)
    shapes: dict[str, Shape]  # of every parameter, scales included
    tasks: dict[Path, tuple[Task, ...]]  # per file, in the order of its bytes
    num_bytes: int


def inspect(
    folder: Path,
    config: ModelConfig,
    *,
    quantization: Quantization = None,
    share: Share = WHOLE,
) -> WeightPlan:
    """Read the headers of the weight files in `folder` and plan how `config` is filled.

    Args:
        quantization: "fp8" makes FP8 of what the published FP8 checkpoints have in FP8.
        share: what this rank holds.

    Raises BadCheckpoint naming every missing, unexpected, misshaped and mistyped tensor; and
    BadSettings if the sizes cannot be shared.
    """
    stored = _by_hub_name(folder, read_headers(folder))
    whole = tuple(parameters(config))
    fp8 = _check(folder, config, whole, stored)
    wanted = fp8_modules(config) if quantization == "fp8" else frozenset()
    mine = whole if share == WHOLE else tuple(parameters(config, share))
    shapes: dict[str, Shape] = {}
    tasks: list[tuple[StoredTensor, Task]] = []
    for parameter in mine:
        shapes[parameter.name] = parameter.shape
        if parameter.module in fp8 | wanted:
            shapes[scale_name(parameter.name)] = parameter.shape[:-1]
        tasks += _tasks(parameter, stored, fp8, wanted)
    tasks.sort(key=lambda task: (task[0].file, task[0].offset, task[1].source.rows))
    by_file: dict[Path, list[Task]] = {}
    for tensor, task in tasks:
        by_file.setdefault(tensor.file, []).append(task)
    here = frozenset(wanted - fp8)
    return WeightPlan(
        fp8=fp8 | wanted,
        quantized_here=here,
        format=_format(stored, fp8, here),
        shapes=shapes,
        tasks={file: tuple(tasks) for file, tasks in by_file.items()},
        num_bytes=sum(task.num_bytes for _, task in tasks),
    )


def _format(stored: dict[str, StoredTensor], fp8: frozenset[str], here: frozenset[str]) -> str:
    if fp8:
        return "fp8"
    if here:
        return "fp8 (made at load)"
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    return names[stored["lm_head.weight"].dtype]


def _tasks(
    parameter: Parameter,
    stored: dict[str, StoredTensor],
    fp8: frozenset[str],
    wanted: frozenset[str],
) -> Iterator[tuple[StoredTensor, Task]]:
    quantize = parameter.module in wanted and parameter.module not in fp8
    for source in parameter.sources:
        tensor = stored[source.name]
        rows, whole_rows = source.num_rows, source.shape[0]
        num_bytes = tensor.num_bytes * rows // whole_rows
        if source.columns is not None and not quantize:
            num_bytes = num_bytes * (source.columns[1] - source.columns[0]) // source.shape[1]
        action: Literal["copy", "quantize"] = "quantize" if quantize else "copy"
        yield tensor, Task(source, tensor.name, parameter.name, action, num_bytes)
        if parameter.module in fp8:
            scale = stored[scale_name(source.name)]
            num_bytes = scale.num_bytes * rows // whole_rows
            name = scale_name(parameter.name)
            yield scale, Task(source, scale.name, name, "scale", num_bytes)


# -------------------------------------------------------------------------------------- checks


def _by_hub_name(folder: Path, stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors under the names of the published checkpoints, whatever prefix they came with."""
    renamed: dict[str, StoredTensor] = {}
    twice = []
    for name, tensor in stored.items():
        for prefix, ours in _SPELLINGS:
            if name.startswith(prefix):
                name = ours + name.removeprefix(prefix)
                break
        if name in renamed:
            twice.append(f"{tensor.name} and {renamed[name].name} are the same tensor")
        renamed[name] = tensor
    if twice:
        raise BadCheckpoint(f"the weights in {folder} are stored twice:", _cap(twice))
    return renamed


def _check(
    folder: Path,
    config: ModelConfig,
    expected: tuple[Parameter, ...],
    stored: dict[str, StoredTensor],
) -> frozenset[str]:
    """The FP8 modules; or BadCheckpoint with all that does not fit."""
    foreign = sorted(name for name in stored if name.endswith(_FOREIGN))
    if foreign:
        raise BadCheckpoint(
            f"the weights in {folder} are quantised in a way Glimt does not read (there is "
            f"{foreign[0]}): use the published BF16 or FP8 checkpoint"
        )
    problems: dict[str, list[str]] = {
        kind: [] for kind in ("missing", "unexpected", "misshaped", "of the wrong type")
    }
    fp8 = _fp8_modules(expected, stored, problems["missing"])
    known: set[str] = set()
    for parameter in expected:
        # Two sources of one parameter can be rows of the same stored tensor.
        for source in {source.name: source for source in parameter.sources}.values():
            known |= _check_source(source, parameter, stored, fp8, problems)
    for name in sorted(stored.keys() - known):
        leftover = _LEFTOVER.fullmatch(name)
        if leftover is None or int(leftover[1]) < config.text.num_layers:
            problems["unexpected"].append(f"{stored[name].name} is not part of this model")
    if any(problems.values()):
        counts = ", ".join(f"{len(found)} {kind}" for kind, found in problems.items() if found)
        raise BadCheckpoint(
            f"the weights in {folder} do not fit config.json; tensors: {counts}",
            [line for found in problems.values() for line in _cap(found)],
        )
    return fp8


def _fp8_modules(
    expected: tuple[Parameter, ...], stored: dict[str, StoredTensor], missing: list[str]
) -> frozenset[str]:
    """Modules whose weights all have scales; half-quantised ones are a problem."""
    with_scale: dict[str, bool] = {}
    for parameter in expected:
        if parameter.module is not None:
            for source in parameter.sources:
                has_scale = scale_name(source.name) in stored
                with_scale[parameter.module] = with_scale.get(parameter.module, False) or has_scale
    fp8 = frozenset(module for module, has_scale in with_scale.items() if has_scale)
    for parameter in expected:
        if parameter.module in fp8:
            missing += [
                f"{scale_name(source.name)} is missing, though {parameter.module} is FP8"
                for source in parameter.sources
                if scale_name(source.name) not in stored
            ]
    return fp8


def _check_source(
    source: Source,
    parameter: Parameter,
    stored: dict[str, StoredTensor],
    fp8: frozenset[str],
    problems: dict[str, list[str]],
) -> set[str]:
    """Check one stored tensor and its scales; the names it accounts for."""
    names = {source.name}
    wanted: list[tuple[str, tuple[Shape, ...], tuple[str, ...]]]
    wanted = [(source.name, (source.shape,), _FLOATS)]
    if parameter.module in fp8:
        scale, rows = scale_name(source.name), source.shape[0]
        names.add(scale)
        wanted = [(source.name, (source.shape,), (_FP8,))]
        if scale in stored:  # its absence is already a problem
            wanted.append((scale, ((rows, 1), (rows,)), _FLOATS))
    for name, shapes, dtypes in wanted:
        tensor = stored.get(name)
        if tensor is None:
            problems["missing"].append(f"{name} is missing; expected {list(shapes[0])}")
            continue
        if tensor.shape not in shapes:
            hint = " (transposed?)" if tensor.shape == shapes[0][::-1] else ""
            problems["misshaped"].append(
                f"{tensor.name} has shape {list(tensor.shape)}, expected {list(shapes[0])}{hint}"
            )
        if tensor.dtype not in dtypes:
            hint = ""
            if tensor.dtype == _FP8 and parameter.module is not None:
                hint = f", or {scale_name(name)} beside it"
            problems["of the wrong type"].append(
                f"{tensor.name} is {tensor.dtype}, expected {' or '.join(dtypes)}{hint}"
            )
    return names


def _cap(lines: list[str]) -> list[str]:
    hidden = len(lines) - _MAX_LISTED
    return lines if hidden <= 0 else [*lines[:_MAX_LISTED], f"… and {hidden} more like these"]
