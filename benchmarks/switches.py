"""Switches of the code for what is not, or not everywhere, faster: set without an edit.

pdl=1              kernels start while the one before ends      ahead_bytes=512  weights fetched
pdl_kernels=a+b    … only these                                 defer_sums=0
decode_at_once=1   attention turns heads and writes the cache   measure_rows=1   and O quantises
prompt_graphs=1    the layers of prompts are replayed
own_grouped=300    experts' products are our own up to so many rows of an expert, by
                   gate_up_tile=0 and down_tile=0 of `triton_grouped.CONFIGS`
chunk_tile=0       the attention of prompts takes this one of `triton_chunks.CONFIGS`,
segment_tile=0     that of the vision tower this one of `triton_segments.CONFIGS`
gates_apart=1      torch computes experts' gates and ups as two products
moe_at_once=1      very few tokens' experts are chosen and computed in one launch
by_place=1         a token's experts are found all at once
scales_first=1     products read their outputs' scales before the weights
soon_mib=16        the end of a product has what is read next fetched, at most so much
encodes_beside=0   steps wait for their images                  tower_stream=1   the tower has its
tower_sms=88       … and so many multiprocessors                                  own stream
"""

from typing import Any

from glimt.kernels import attention, choice, draws, experts, grouped, twins
from glimt.processes import build as processes_build
from glimt.runner import build, streams

Switches = dict[str, int | str]

_PLACES: dict[str, tuple[Any, str]] = {
    "pdl": (twins.triton_support, "PDL"),
    "pdl_kernels": (twins.triton_support, "PDL_KERNELS"),
    "ahead_bytes": (twins.triton_support, "AHEAD_BYTES"),
    "defer_sums": (choice, "DEFERS"),
    "decode_at_once": (attention, "DECODES_AT_ONCE"),
    "measure_rows": (attention, "MEASURES"),
    "moe_at_once": (experts, "AT_ONCE"),
    "by_place": (twins.triton_router, "BY_PLACE"),
    "scales_first": (twins.triton_support, "SCALES_FIRST"),
    "soon_mib": (twins.triton_soon, "SOON_MIB"),
    "few_by_kernel": (draws, "FEW_BY_KERNEL"),
    "prompt_graphs": (build, "PROMPT_GRAPHS"),
    "chunk_tile": (twins.triton_chunks, "LARGE"),
    "segment_tile": (twins.triton_segments, "USED"),
    "own_grouped": (grouped, "OWN_UP_TO"),
    "gate_up_tile": (grouped, "GATE_UP_TILE"),
    "down_tile": (grouped, "DOWN_TILE"),
    "gates_apart": (grouped, "APART"),
    "encodes_beside": (processes_build, "ENCODES_BESIDE"),
    "tower_stream": (streams, "OWN_STREAM"),
    "tower_sms": (streams, "TOWER_SMS"),
}
_SHIPPED = {
    name: getattr(module, attribute)
    for name, (module, attribute) in _PLACES.items()
    if module is not None
}


def switches_of(text: str) -> Switches:
    """Of "name=value,name=value". Raises ValueError for what is no switch."""
    switches: Switches = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in _PLACES:
            raise ValueError(f"no switch {name!r}: {', '.join(_PLACES)}")
        switches[name] = value if name == "pdl_kernels" else int(value)
    return switches


def switch(switches: Switches) -> None:
    """Set these, in this process, and the others to what they are in the code."""
    for name, shipped in _SHIPPED.items():
        value = switches.get(name, shipped)
        if isinstance(value, str):
            value = frozenset(value.split("+"))
        setattr(*_PLACES[name], value)
