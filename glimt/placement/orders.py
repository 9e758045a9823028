"""What each machine of a Ray cluster is told: the flags that a user would have typed there.

So a rank or copy that Ray has placed is started, compared, watched and ended by the code of
`--nnodes` and `--headless`, and knows nothing of Ray.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from glimt.board import MAX_ENGINES
from glimt.config import ParallelSettings, Settings
from glimt.copies import MIN_TOKEN_LENGTH
from glimt.placement.layout import Resource, Wish


class Address(NamedTuple):
    """Where machines meet."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Head:
    """Where copies of other machines reach this one, where ranks of other machines reach the first
    copy, and how they prove that they may."""

    copies: Address
    ranks: Address
    token: str


def wants_ray(parallel: ParallelSettings) -> bool:
    """Whether Ray places something."""
    return "ray" in (parallel.distributed_executor_backend, parallel.data_parallel_backend)


def problems(parallel: ParallelSettings) -> Iterator[str]:
    """What of the flags cannot be together with Ray, a line each."""
    nodes, size, copies = (
        parallel.nnodes,
        parallel.tensor_parallel_size,
        parallel.data_parallel_size,
    )
    if not 1 <= copies <= MAX_ENGINES:
        yield f"--data-parallel-size {copies}: must be 1 to {MAX_ENGINES}"
    if nodes < 1 or size % nodes:
        yield f"--tensor-parallel-size {size}: must be a multiple of --nnodes {nodes}"
    if nodes > 1 and copies > 1 and parallel.data_parallel_backend != "ray":
        yield (
            f"--data-parallel-size {copies}: copies of --nnodes {nodes} machines each are placed "
            "with --data-parallel-backend ray; or leave out --nnodes, so that each is on one"
        )
    for flag, wanted in (
        ("--node-rank", parallel.node_rank != 0),
        ("--headless", parallel.headless),
        ("--data-parallel-rank", parallel.data_parallel_rank is not None),
        ("--data-parallel-start-rank", parallel.data_parallel_start_rank is not None),
        ("--data-parallel-external-lb", parallel.data_parallel_external_lb),
        ("--data-parallel-hybrid-lb", parallel.data_parallel_hybrid_lb),
    ):
        if wanted:
            yield f"{flag}: Ray decides what each machine does; leave it out"
    yield from _together(parallel)
    if parallel.master_token is not None and len(parallel.master_token) < MIN_TOKEN_LENGTH:
        yield (
            f"--master-token: must have {MIN_TOKEN_LENGTH} characters or more, or be left out: "
            "then one is drawn"
        )


def _together(parallel: ParallelSettings) -> Iterator[str]:
    """What cannot be of copies that are to be on a machine together."""
    local, copies = parallel.data_parallel_size_local, parallel.data_parallel_size
    if local is None:
        return
    flag = f"--data-parallel-size-local {local}"
    if parallel.data_parallel_backend != "ray":
        yield f"{flag}: Ray decides how many copies are here; leave it out"
    elif parallel.nnodes > 1:
        yield f"{flag}: a copy takes --nnodes {parallel.nnodes} machines; leave one of them out"
    elif local < 1 or copies % local:
        yield (
            f"{flag}: Ray places so many on each machine, and --data-parallel-size {copies} is no "
            "multiple of it"
        )


def wish_of(settings: Settings, resource: Resource, num_here: int | None = None) -> Wish:
    """What is to be placed."""
    parallel = settings.parallel
    copies, parts = parallel.data_parallel_size, parallel.nnodes
    return Wish(
        resource=resource,
        num_copies=copies,
        num_parts=parts,
        num_ranks=parallel.tensor_parallel_size // parts,
        spreads=copies == 1 or parallel.data_parallel_backend == "ray",
        num_here=num_here,
        num_together=parallel.data_parallel_size_local or 1,
    )


def of_this_machine(settings: Settings, head: Head, num_here: int) -> Settings:
    """For the machine with HTTP, which has the first `num_here` copies, or of the first one the
    first ranks."""
    parallel = _without_ray(settings.parallel)
    if parallel.nnodes > 1:
        parallel = _with_ranks(parallel, head.ranks, head.token)
    if num_here < parallel.data_parallel_size:
        parallel = replace(_with_head(parallel, head), data_parallel_size_local=num_here)
    return replace(settings, parallel=parallel)


def of_place(
    settings: Settings, head: Head, copy: int, part: int = 0, ranks: Address | None = None
) -> Settings:
    """For another machine with a copy (and those that are to be with it), or with a part of its
    ranks, which then meet at `ranks`.
    """
    parallel, together = _without_ray(settings.parallel), settings.parallel.data_parallel_size_local
    if ranks is not None:
        parallel = replace(_with_ranks(parallel, ranks, head.token), node_rank=part)
    if ranks is None or parallel.data_parallel_size > 1:
        parallel = replace(
            _with_head(parallel, head),
            headless=True,
            data_parallel_start_rank=copy,
            data_parallel_size_local=together or 1,
        )
    return _without_http(settings, parallel)


def _without_ray(parallel: ParallelSettings) -> ParallelSettings:
    return replace(
        parallel,
        distributed_executor_backend=None,
        data_parallel_backend="mp",
        data_parallel_size_local=None,
    )


def _with_ranks(parallel: ParallelSettings, ranks: Address, token: str) -> ParallelSettings:
    return replace(parallel, master_addr=ranks.host, master_port=ranks.port, master_token=token)


def _with_head(parallel: ParallelSettings, head: Head) -> ParallelSettings:
    return replace(
        parallel,
        data_parallel_address=head.copies.host,
        data_parallel_rpc_port=head.copies.port,
        master_token=head.token,
    )


def _without_http(settings: Settings, parallel: ParallelSettings) -> Settings:
    """Nothing that only a server needs: keys stay here, and files that are only here."""
    experts = parallel.expert_placement
    return replace(
        settings,
        model=whole_path(settings.model),
        parallel=replace(
            parallel,
            api_server_count=1,
            expert_placement=None if experts is None else whole_path(experts),
        ),
        media=replace(settings.media, allowed_local_media_path=None),
        server=replace(
            settings.server,
            uds=None,
            api_key=None,
            api_key_file=None,
            admin_key=None,
            admin_key_file=None,
            ssl_certfile=None,
            ssl_keyfile=None,
            ssl_ca_certs=None,
            ssl_cert_reqs=0,
            ssl_ciphers=None,
        ),
    )


def whole_path(path: str) -> str:
    """The same from any folder. What is no file here may be a name in the hub."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def encode(settings: Settings) -> bytes:
    """As JSON."""
    return msgspec.json.encode(settings)


def decode(data: bytes) -> Settings:
    """What `encode` has made. Raises msgspec.ValidationError."""
    return msgspec.json.decode(data, type=Settings)
