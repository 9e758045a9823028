"""The commands of `glimt bench` that run without a client; they are loaded only when asked for."""

from typing import Annotated

from glimt.bench.offline.engine import DEFAULT_MODEL, EngineOptions
from glimt.bench.offline.latency import LatencyOptions
from glimt.bench.offline.latency import latency as measure_latency
from glimt.bench.offline.mm import MediaOptions, PictureOptions, measure_media
from glimt.bench.offline.startup import StartupOptions
from glimt.bench.offline.startup import startup as measure_startup
from glimt.bench.offline.throughput import ThroughputOptions
from glimt.bench.offline.throughput import throughput as measure_throughput
from glimt.bench.options import DataOptions, flags_of


def latency(
    model: str = DEFAULT_MODEL,
    *,
    wishes: Annotated[LatencyOptions, flags_of(LatencyOptions)] = LatencyOptions(),
    engine: Annotated[EngineOptions, flags_of(EngineOptions)] = EngineOptions(),
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
    *,
    wishes: Annotated[ThroughputOptions, flags_of(ThroughputOptions)] = ThroughputOptions(),
    data: Annotated[DataOptions, flags_of(DataOptions)] = DataOptions(),
    engine: Annotated[EngineOptions, flags_of(EngineOptions)] = EngineOptions(),
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
    *,
    wishes: Annotated[StartupOptions, flags_of(StartupOptions)] = StartupOptions(),
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
    wishes: Annotated[MediaOptions, flags_of(MediaOptions)] = MediaOptions(),
    data: Annotated[PictureOptions, flags_of(PictureOptions)] = PictureOptions(),
) -> int:
    """Time what the pictures of a workload cost a media worker, stage by stage."""
    return measure_media(wishes, data, print)
