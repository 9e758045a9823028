"""The commands of `glimt bench` that run without a client; they are loaded only when asked for."""

from typing import Annotated

from cyclopts import Parameter

from glimt.bench.offline.engine import DEFAULT_MODEL, EngineOptions
from glimt.bench.offline.latency import LatencyOptions
from glimt.bench.offline.latency import latency as measure_latency
from glimt.bench.offline.mm import MediaOptions, measure_media
from glimt.bench.offline.startup import StartupOptions
from glimt.bench.offline.startup import startup as measure_startup
from glimt.bench.offline.throughput import ThroughputOptions
from glimt.bench.offline.throughput import throughput as measure_throughput
from glimt.bench.options import DataOptions


def latency(
    model: str = DEFAULT_MODEL,
    /,
    *,
    wishes: Annotated[LatencyOptions, Parameter(name="*")] = LatencyOptions(),
    engine: Annotated[EngineOptions, Parameter(name="*")] = EngineOptions(),
) -> int:
    """Time one batch of equal prompts, again and again, without a server.

    Parameters
    ----------
    model
        Folder of a checkpoint, or a repository of the hub; default: the model that comes along.
    """
    return measure_latency(model, wishes, engine, print)


def throughput(
    model: str = DEFAULT_MODEL,
    /,
    *,
    wishes: Annotated[ThroughputOptions, Parameter(name="*")] = ThroughputOptions(),
    data: Annotated[DataOptions, Parameter(name="*")] = DataOptions(),
    engine: Annotated[EngineOptions, Parameter(name="*")] = EngineOptions(),
) -> int:
    """Time all prompts at once, without a server.

    Parameters
    ----------
    model
        Folder of a checkpoint, or a repository of the hub; default: the model that comes along.
    """
    return measure_throughput(model, wishes, data, engine, print)


def startup(
    model: str = DEFAULT_MODEL,
    /,
    *,
    wishes: Annotated[StartupOptions, Parameter(name="*")] = StartupOptions(),
) -> int:
    """Start `glimt serve` several times and take the time to ready apart.

    Parameters
    ----------
    model
        Folder of a checkpoint, or a repository of the hub; default: the model that comes along.
    """
    return measure_startup(model, wishes, print)


def mm(
    *,
    wishes: Annotated[MediaOptions, Parameter(name="*")] = MediaOptions(),
    data: Annotated[DataOptions, Parameter(name="*")] = DataOptions(
        dataset_name="visionarena-like"
    ),
) -> int:
    """Time what the pictures of a workload cost a media worker, stage by stage."""
    return measure_media(wishes, data, print)
