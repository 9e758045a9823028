"""`glimt experts`: collect which experts tokens choose, and place experts by it."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, Parameter

from glimt.errors import BadSettings
from glimt.experts.collect import collect as collect_from
from glimt.experts.load import added, read_load
from glimt.experts.packing import place_by_load
from glimt.experts.placement import by_strategy
from glimt.experts.report import compare, describe_load

app = App(name="experts", help="Which experts tokens choose, and on which GPUs experts lie.")


@app.command
def collect(
    out: Path,
    /,
    *,
    base_url: str = "http://127.0.0.1:8000",
    admin_key: str | None = None,
    seconds: float | None = None,
) -> int:
    """Write to the file OUT how many tokens chose each expert of each layer of a running server.

    The server must have been started with --enable-expert-load-metrics and --admin-key.

    Parameters
    ----------
    out
        File to write (JSON).
    base_url
        Address of the server.
    admin_key
        An operator's key; better through GLIMT_ADMIN_KEY.
    seconds
        Count for so long; default: all since the engines started.
    """
    if admin_key is None:
        raise BadSettings("glimt experts collect needs --admin-key (or GLIMT_ADMIN_KEY)")
    load = collect_from(base_url, admin_key, seconds)
    _write(out, load)
    print(f"{out}: {describe_load(load)}", file=sys.stderr)
    return 0


@app.command
def place(
    loads: Annotated[list[Path], Parameter(consume_multiple=True)],
    /,
    *,
    gpus: int,
    redundant: int = 0,
    check: Annotated[list[Path] | None, Parameter(consume_multiple=True, negative="")] = None,
    out: Annotated[Path, Parameter(alias="-o")],
) -> int:
    """Place experts on GPUs by the loads in the files LOADS, so that the fullest has least to do.

    Prints what that makes of the load beside placements that know nothing of it. The result is for
    `glimt serve --enable-expert-parallel --expert-placement OUT`.

    Parameters
    ----------
    loads
        Files that `glimt experts collect` has written; several are added.
    gpus
        GPUs that experts are spread over: --tensor-parallel-size times --data-parallel-size.
    redundant
        Places of each layer, over all GPUs, for further copies of the experts chosen most.
    check
        Files with other loads, to judge the placement by what it was not made of.
    out
        File to write (JSON).
    """
    load = added(read_load(file) for file in loads)
    placement = place_by_load(load, gpus, redundant)
    compared = {}
    if load.num_experts % gpus == 0:
        compared = {
            "linear": by_strategy("linear", [*load.layers], load.num_experts, gpus),
            "round_robin": by_strategy("round_robin", [*load.layers], load.num_experts, gpus),
        }
    judged = load if check is None else added(read_load(file) for file in check)
    if judged.layers.keys() != load.layers.keys() or judged.num_experts != load.num_experts:
        raise BadSettings("--check: these loads are of another model")
    print(compare({**compared, str(out): placement}, judged))
    _write(out, placement)
    return 0


def _write(out: Path, value: msgspec.Struct) -> None:
    """As JSON, a line for each layer. Raises BadSettings."""
    fields = msgspec.structs.asdict(value)
    layers = (f'  "{n}": {_json(layer)}' for n, layer in fields.pop("layers").items())
    head = "".join(f' "{name}": {_json(field)},\n' for name, field in fields.items())
    text = "{\n" + head + ' "layers": {\n' + ",\n".join(layers) + "\n }\n}\n"
    try:
        out.write_text(text, "utf-8")
    except OSError as error:
        raise BadSettings(f"{out}: {error.strerror}") from None


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
