"""The numbers of `planning/constants.toml`, typed; every one knows where it comes from."""

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from glimt.errors import BadSettings
from glimt.models.config_json import merge_overrides

SOURCES = ("measured", "published", "calculated", "assumed")
FILE = Path(__file__).parent / "constants.toml"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device: bytes, bytes/s, FLOP/s. `link`: to another GPU of its machine, one direction."""

    name: str
    title: str
    memory_bytes: float
    bandwidth: float
    fp8: float
    bf16: float
    attention: float
    link: float


@dataclass(frozen=True, slots=True)
class Collectives:
    """Costs of communication. `all_reduce`: number of GPUs -> ascending (bytes, seconds);
    `exchange`: bytes that reach a GPU in one collective of NCCL -> seconds."""

    all_reduce: Mapping[int, tuple[tuple[float, float], ...]]
    exchange: tuple[tuple[float, float], ...]
    per_doubling: float
    link_efficiency: float
    floor_s: float
    floor_bytes: float
    node_link: float
    node_latency_s: float


@dataclass(frozen=True, slots=True)
class Engine:
    """What an engine makes of a device, and what the host takes."""

    decode_efficiency: float
    split_efficiency: float
    fp8_kv_efficiency: float
    prefill_efficiency: float
    tower_efficiency: float
    prompt_layer_s: float
    tower_layer_s: float
    launch_s: float
    launches_per_layer: float
    layer_s: float
    reserve_bytes: float
    image_host_s: float
    request_host_s: float
    most_busy: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Decode steps that were really measured, (requests, seconds), and a first token: tokens of its
    image, all tokens of its prompt, seconds on the device."""

    model: str
    gpu: str
    version: str
    tensor_parallel_size: int
    context: int
    where: str
    steps: tuple[tuple[int, float], ...]
    first_token: tuple[int, int, float]


@dataclass(frozen=True)
class Constants:
    """All of them. `origins`: dotted name -> (source, note)."""

    gpus: Mapping[str, Gpu]
    collectives: Collectives
    engine: Engine
    measured: tuple[Measured, ...]
    origins: Mapping[str, tuple[str, str]]

    def gpu(self, name: str) -> Gpu:
        """The device called `name`. Raises BadSettings."""
        found = self.gpus.get(name.lower())
        if found is None:
            raise BadSettings(
                f"--gpu {name}: its numbers are not known; known are {', '.join(self.gpus)}, and "
                "--constants FILE can add [gpu.NAME]"
            )
        return found


def load_constants(over: str | None = None) -> Constants:
    """The file of the package, with the TOML file `over` laid on top. Raises BadSettings."""
    tables = tomllib.loads(FILE.read_text("utf-8"))
    if over is not None:
        tables = merge_overrides(tables, _read(over))
    problems: list[str] = []
    origins: dict[str, tuple[str, str]] = {}
    reader = _Reader(problems, origins)
    constants = Constants(
        gpus={
            name: Gpu(
                name=name,
                title=str(table.get("title", name)),
                **reader.numbers(f"gpu.{name}", table, Gpu, leave=("name", "title")),
            )
            for name, table in reader.tables(tables, "gpu")
        },
        collectives=Collectives(
            all_reduce={
                int(ranks): reader.points(f"all_reduce.{ranks}", table)
                for ranks, table in reader.tables(tables, "all_reduce")
                if ranks.isdigit()
            },
            exchange=reader.points("exchange", tables.get("exchange", {})),
            **reader.numbers(
                "collectives",
                tables.get("collectives", {}),
                Collectives,
                leave=("all_reduce", "exchange"),
            ),
        ),
        engine=Engine(**reader.numbers("engine", tables.get("engine", {}), Engine)),
        measured=tuple(_measured(table, problems) for table in tables.get("measured", [])),
        origins=origins,
    )
    if problems:
        raise BadSettings(f"--constants {over or FILE}: cannot be used:", problems)
    return constants


def _read(file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(file).read_text("utf-8"))
    except OSError as error:
        raise BadSettings(f"--constants {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSettings(f"--constants {file}: not TOML ({error})") from None


class _Reader:
    """Reads tables of constants; notes problems and origins instead of raising at the first."""

    def __init__(self, problems: list[str], origins: dict[str, tuple[str, str]]) -> None:
        self._problems = problems
        self._origins = origins

    def tables(self, tables: Mapping[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The named tables below `key`."""
        for name, table in tables.get(key, {}).items():
            if isinstance(table, dict):
                yield name, table
            else:
                self._problems.append(f"{key}.{name} must be a table")

    def numbers(
        self, path: str, table: Mapping[str, Any], kind: type, leave: tuple[str, ...] = ()
    ) -> dict[str, float]:
        """One number for each field of the dataclass `kind`, except those in `leave`."""
        names = [field.name for field in fields(kind) if field.name not in leave]
        for name in table.keys() - set(names) - {"title"}:
            self._problems.append(f"{path}.{name} is not a constant of the plan")
        return {name: self._number(f"{path}.{name}", table.get(name)) for name in names}

    def points(self, path: str, table: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
        """Ascending (bytes, seconds)."""
        self._origin(path, table)
        pairs = table.get("points", [])
        good = isinstance(pairs, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(map(_is_positive, pair))
            for pair in pairs
        )
        if not good or len(pairs) < 2 or sorted(pairs) != pairs:
            self._problems.append(f"{path}.points must be ascending pairs [bytes, seconds]")
            return ((1.0, 1.0), (2.0, 1.0))
        return tuple((float(size), float(seconds)) for size, seconds in pairs)

    def _number(self, path: str, entry: Any) -> float:
        if not isinstance(entry, dict) or not _is_positive(entry.get("value")):
            self._problems.append(f"{path} must be {{ value = …, source = …, note = … }}")
            return 1.0
        self._origin(path, entry)
        return float(entry["value"])

    def _origin(self, path: str, entry: Mapping[str, Any]) -> None:
        source, note = entry.get("source"), entry.get("note")
        if source not in SOURCES or not isinstance(note, str) or not note:
            self._problems.append(f"{path} needs a source ({', '.join(SOURCES)}) and a note")
        self._origins[path] = (str(source), str(note))


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf


def _measured(table: Mapping[str, Any], problems: list[str]) -> Measured:
    try:
        return Measured(
            **{
                **table,
                "steps": tuple((int(batch), float(s)) for batch, s in table["steps"]),
                "first_token": _first_token(*table["first_token"]),
            }
        )
    except (KeyError, TypeError, ValueError):
        problems.append("measured: needs " + ", ".join(field.name for field in fields(Measured)))
        return Measured("", "", "", 1, 1, "", (), (1, 1, 0.0))


def _first_token(image_tokens: int, tokens: int, seconds: float) -> tuple[int, int, float]:
    return int(image_tokens), int(tokens), float(seconds)
