"""What a Ray Serve application may be told, and what that means for each of its servers: without
Ray, so that it can be judged anywhere.
"""

import shlex
from dataclasses import replace
from typing import Any

import msgspec

from glimt.cli import settings_of
from glimt.config import Settings
from glimt.config_check import check
from glimt.errors import BadSettings
from glimt.placement.orders import wants_ray, whole_path


class Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `args` of the application may hold: the words after `glimt serve`, and how many servers
    there shall be. Seconds and tokens are those of each server.
    """

    command: str = ""
    min_replicas: int = 1
    max_replicas: int = 1
    queued_tokens: int = 40_000  # of prompts, that may wait at each server
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    look_back_period_s: float = 30.0  # over which reports are averaged


def arguments_of(args: dict[str, Any]) -> Arguments:
    """Numbers may be text, as a command line has them. Raises BadSettings."""
    try:
        arguments = msgspec.convert(args, Arguments, strict=False)
    except msgspec.ValidationError as error:
        raise BadSettings(f"args of the application: {error}") from None
    if not 1 <= arguments.min_replicas <= arguments.max_replicas:
        raise BadSettings("args of the application: 1 <= min_replicas <= max_replicas must hold")
    if arguments.queued_tokens < 1:
        raise BadSettings("args of the application: queued_tokens must be at least 1")
    return arguments


def server_settings(command: str) -> Settings:
    """What each server is to do. Raises BadSettings."""
    settings = settings_of(shlex.split(command))
    parallel = settings.parallel
    problems = []
    if wants_ray(parallel):
        problems.append(
            "--distributed-executor-backend ray and --data-parallel-backend ray: Ray Serve places "
            "whole servers, each on one machine; leave them out"
        )
    if parallel.nnodes > 1 or parallel.headless or parallel.data_parallel_size_local is not None:
        problems.append("--nnodes and --headless: each server is on one machine; leave them out")
    if settings.server.uds is not None:
        problems.append("--uds: Ray Serve listens for the servers; leave it out")
    if settings.server.ssl_certfile is not None:
        problems.append(
            "--ssl-certfile: Ray Serve listens for the servers; give it the certificate"
        )
    if problems:
        raise BadSettings("a Ray Serve application cannot have these flags:", problems)
    check(settings)
    return replace(settings, model=whole_path(settings.model))


def resources(settings: Settings) -> dict[str, float]:
    """What one server takes of its machine: a GPU for each rank, or a CPU."""
    parallel = settings.parallel
    num_ranks = float(parallel.tensor_parallel_size * parallel.data_parallel_size)
    if settings.cache.device == "cpu":
        return {"num_cpus": num_ranks}
    return {"num_cpus": 1.0, "num_gpus": num_ranks}
