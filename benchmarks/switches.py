"""Switches of the code for what is not, or not everywhere, faster: set without an edit.

defer_sums=0       norms do not carry out the sums before them
tuned=0            products take the rules' tiles, not the table's (`kernels/tiles.json`)
few_by_kernel=1    two kernels find where a small top_k cuts
prompt_graphs=1    the layers of prompts are replayed
encodes_beside=0   steps wait for their images
tower_stream=1     the vision tower has its own stream     tower_sms=88   … and so many processors
"""

import os
from pathlib import Path
from typing import Any

from glimt.kernels import choice, draws, tiles
from glimt.processes import build as processes_build
from glimt.runner import build, streams

Switches = dict[str, int | str]

_PLACES: dict[str, tuple[Any, str]] = {
    "defer_sums": (choice, "DEFERS"),
    "tuned": (tiles, "TUNED"),
    "few_by_kernel": (draws, "FEW_BY_KERNEL"),
    "prompt_graphs": (build, "PROMPT_GRAPHS"),
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


def hand_on(switches: Switches, folder: Path) -> None:
    """Have the ranks that this process starts set them as well, by a file in `folder`, which Python
    reads when it starts; it must be there until they have.
    """
    text = f"""import sys
if "glimt.processes.peer" in sys.orig_argv:
    sys.path.append({str(Path(__file__).parent)!r})
    from switches import switch
    switch({switches!r})
"""
    (folder / "sitecustomize.py").write_text(text)
    before = filter(None, [os.environ.get("PYTHONPATH")])
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *before])
