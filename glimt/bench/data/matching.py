"""Which options concern which datasets: one that has no effect is not ignored in silence.

vLLM's client ignores its own, and its command lines are to run unchanged, so these get a note;
options that only this client has are refused.
"""

import dataclasses
from collections.abc import Iterator

from glimt.bench.options import DataOptions

_RANDOM = ("random", "random-mm")
_CUSTOM = ("custom", "custom_image", "custom_mm")
# By the beginning of the field's name, the longest first.
_OF = {
    "random_mm_": ("random-mm",),
    "random_": _RANDOM,
    "sharegpt_": ("sharegpt",),
    "hf_": ("hf",),
    "custom_ensure_": ("custom_image", "custom_mm", "sharegpt"),
    "custom_": _CUSTOM,
    "prefix_repetition_": ("prefix_repetition",),
    "timed_trace_": ("timed_trace",),
    "input_len": _RANDOM,
    "no_stream": ("hf",),
}
_OURS = {
    "image_source": ("visionarena-like",),
    "image_format": ("visionarena-like",),
    "image_dup_ratio": ("visionarena-like", "random-mm"),
}


def without_effect(data: DataOptions) -> Iterator[str]:
    """A note for each option of vLLM's client that was given for another dataset than this."""
    for field in dataclasses.fields(data):
        of = next((names for start, names in _OF.items() if field.name.startswith(start)), None)
        if of is not None and _is_idle(data, field, of):
            yield f"{_flag(field)} has no effect on {data.dataset_name}: it is for {_any_of(of)}"


def refused(data: DataOptions) -> Iterator[str]:
    """A problem for each option of ours that was given for another dataset than this."""
    for field in dataclasses.fields(data):
        of = _OURS.get(field.name)
        if of is not None and _is_idle(data, field, of):
            yield f"{_flag(field)} is for --dataset-name {_any_of(of)}, not {data.dataset_name}"
    if data.think_time > 0 and data.turns == 1:
        yield "--think-time is the pause between turns: it needs --turns"


def _is_idle(data: DataOptions, field: "dataclasses.Field[object]", of: tuple[str, ...]) -> bool:
    return data.dataset_name not in of and getattr(data, field.name) != field.default


def _flag(field: "dataclasses.Field[object]") -> str:
    return f"--{field.name.replace('_', '-')}"


def _any_of(names: tuple[str, ...]) -> str:
    return " or ".join(names)
