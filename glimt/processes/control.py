"""What the supervisor and its children tell each other: settings down, state up.

How it travels is in `control_line.py`.
"""

from typing import Any, Literal

import msgspec

from glimt import __version__
from glimt.experts.group import Backend, ExpertGroup
from glimt.experts.placement import Placement
from glimt.placement.messages import Placed
from glimt.processes.group_messages import GroupBegins, GroupEnds, GroupQuiet
from glimt.processes.preflight import ClusterSettings
from glimt.processes.tls import TlsFiles
from glimt.wire import EngineInfo, ImageSettings, MediaLimits

# ------------------------------------------------------------------------------ parent → child


class ProfilerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a profile holds, and where it is written."""

    folder: str
    with_stack: bool
    with_flops: bool
    record_shapes: bool
    with_memory: bool
    gzip: bool


class EngineStart(msgspec.Struct, frozen=True, kw_only=True, tag="engine_start"):
    """Everything an engine process needs; it reads no flags and no environment."""

    index: int  # which replica, of those of all machines
    place_here: int = 0  # which of those on this machine
    num_ranks_here: int  # of all replicas on this machine
    inbox: str  # address it binds
    server_inboxes: tuple[str, ...]  # addresses it sends Outputs to, by server number
    arena_fds: tuple[int, ...]
    model_path: str
    hf_overrides: dict[str, Any]
    load_format: str
    quantization: str | None
    dtype: str
    kv_cache_dtype: str
    kv_cache_memory_bytes: int | None
    memory_utilization: float
    device: str  # auto · cpu · cuda
    enforce_eager: bool  # no CUDA graphs
    page_size: int | None
    max_model_len: int | None  # None = the checkpoint's; 0 = what fits
    max_num_batched_tokens: int | None
    max_num_seqs: int | None
    prefix_caching: bool
    policy: str
    overlap: bool
    seed: int
    max_logprobs: int
    image_max_tokens: int  # of the largest image the preprocessor lets through
    estimates_work: bool = False  # of steps: operations and bytes
    counts_experts: bool = False  # how many tokens choose each
    watched_pages: float = 0.0  # share of the KV pages whose lives become metrics
    profiler: ProfilerSettings | None = None  # None: profiles cannot be recorded
    tensor_parallel_size: int
    expert_parallel: bool
    expert_placement: Placement | None = None  # None: in order
    expert_group: ExpertGroup | None = None  # None: no other replica shares them
    all2all_backend: Backend = "auto"
    encoder_tp_mode: Literal["weights", "data"]
    disable_custom_all_reduce: bool
    num_nodes: int = 1  # machines that the ranks of one replica are spread over
    cluster: ClusterSettings | None = None  # how they find each other, if there are several
    folder: str  # private, for the sockets between ranks; "" = one that is made
    log_level: str
    log_json: bool


class PeerStart(msgspec.Struct, frozen=True, kw_only=True, tag="peer_start"):
    """From an engine process (on another machine its node) to one further rank of its replica."""

    engine: EngineStart
    rank: int
    inbox: str  # address it binds for plans
    meeting_point: str  # file at which the ranks find each other, or node 0's address
    meeting_port: int = 0  # 0: it is a file
    own_address: str = "127.0.0.1"  # at which other ranks reach this one
    num_far_arenas: int = 0  # on another machine than rank 0: their pixels come with the plans


class CorsRules(msgspec.Struct, frozen=True, kw_only=True):
    """What browsers may let web pages do. No origins: nothing."""

    origins: tuple[str, ...]
    methods: tuple[str, ...]
    headers: tuple[str, ...]
    credentials: bool


class ServerStart(msgspec.Struct, frozen=True, kw_only=True, tag="server_start"):
    """Everything a server process needs."""

    index: int
    inbox: str  # address it binds for Outputs
    media_hub: str  # address it binds for media workers
    arena_fd: int
    index_fd: int = -1  # table of the image cache that all servers share; -1: each has its own
    num_servers: int
    copies: tuple[int, ...] = (0,)  # numbers of all replicas, of other machines as well
    board_fd: int = -1  # counts of all servers; -1: there is one server
    ledger_fd: int = -1  # metrics of all servers; likewise
    socket_fd: int  # listening socket, bound by the parent
    model_path: str
    served_model_names: tuple[str, ...]
    max_model_len: int  # upper bound; the engine has the last word
    chat_template: str  # the template's text
    chat_template_kwargs: dict[str, Any]
    content_format: Literal["auto", "string", "openai"]
    generation_defaults: dict[str, Any]
    image: ImageSettings
    video: ImageSettings
    limits: MediaLimits
    max_images: int
    max_videos: int
    allowed_local_media_path: str | None
    allowed_media_domains: tuple[str, ...] | None
    api_keys: tuple[str, ...]
    admin_keys: tuple[str, ...]
    tls: TlsFiles | None
    log_access: bool  # a line per finished request
    quiet_paths: tuple[str, ...]  # without such lines
    response_role: str
    otlp_traces_endpoint: str | None
    first_token_timeout_s: float  # 0 = none
    cache_config: dict[str, str]  # shown as labels of a metric
    seed: int | None  # of the seeds of requests that bring none; None = drawn afresh
    priority_policy: bool
    root_path: str
    cors: CorsRules
    reasoning_parser: str | None
    reasoning_content: bool
    box_tokens: Literal["keep", "strip", "structured"]
    tool_call_parser: Literal["glm45", "glm47"] | None
    auto_tool_choice: bool
    hide_uncallable_tools: bool
    tool_strict_level: Literal["auto", "function", "parameter"]
    max_logprobs: int
    max_num_queued_reqs: int
    prompt_tokens_details: bool
    force_include_usage: bool
    request_id_headers: bool
    strict_fields: bool
    trust_request_template: bool
    log_level: str
    log_json: bool
    log_requests: bool
    log_stats: bool


class MediaWorkerStart(msgspec.Struct, frozen=True, kw_only=True, tag="media_worker_start"):
    """Everything a media worker needs."""

    number: int
    server: int  # that it works for
    name: str
    hub: str  # address of the server's hub
    arena_fd: int
    arena: int  # number of that arena
    log_level: str
    log_json: bool


class EngineUp(msgspec.Struct, frozen=True, tag="engine_up"):
    """Engine `index` takes requests at `address`: to a server, and from the gate."""

    index: int
    address: str
    info: EngineInfo


class EngineDown(msgspec.Struct, frozen=True, tag="engine_down"):
    """Engine `index` is gone; its open requests have no answer any more: as `EngineUp`."""

    index: int
    reason: str  # for clients


class EngineLeaving(msgspec.Struct, frozen=True, tag="engine_leaving"):
    """Engine `index` finishes what it has and shall get nothing new: as `EngineUp`."""

    index: int


class MediaWorkerDown(msgspec.Struct, frozen=True, tag="media_worker_down"):
    """To a server: the media worker of this name is gone."""

    name: str


class ServerGone(msgspec.Struct, frozen=True, tag="server_gone"):
    """To an engine: end all requests of this server, then say `ServerForgotten`."""

    server: int


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """To a server: take nothing new, finish what runs within `timeout_s`, then leave."""

    timeout_s: float


class Notice(msgspec.Struct, frozen=True, tag="notice"):
    """From a server, and by the supervisor to all others: what they are to do as well."""

    kind: Literal["end_open", "forget_pixels", "forget_routes"]
    reason: str


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Leave now, in order."""


class FirstMessage(msgspec.Struct, frozen=True, kw_only=True):
    """To every child, before all others. Its form never changes, because a child may be of another
    version of Glimt than its parent: of one that was installed since the parent was started.
    """

    glimt: str = ""  # version of the parent; "" = it was older than this message
    start: msgspec.Raw = msgspec.Raw()  # what the child is: one of the structs `…Start`


def first_message(start: msgspec.Struct) -> FirstMessage:
    """What this process tells a child that it starts."""
    return FirstMessage(glimt=__version__, start=msgspec.Raw(msgspec.msgpack.encode(start)))


ToChild = (
    EngineUp
    | EngineDown
    | EngineLeaving
    | MediaWorkerDown
    | ServerGone
    | Drain
    | Notice
    | GroupQuiet
    | Stop
)

# ------------------------------------------------------------------------------ child → parent


class Phase(msgspec.Struct, frozen=True, tag="phase"):
    """A start-up phase is over and took this long."""

    name: str
    seconds: float
    detail: str = ""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The child does its work from now on. Engines say what they resolved."""

    info: EngineInfo | None = None


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """Once a second from an engine or server: how long its loop has made no progress."""

    stalled_s: float


class ServerForgotten(msgspec.Struct, frozen=True, tag="server_forgotten"):
    """From an engine: nothing of that server is running, its pixels are not read any more."""

    server: int


class HeadEnded(msgspec.Struct, frozen=True, tag="head_ended"):
    """From the uplink: the machine that has HTTP has ended in order, and so shall this one."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The child cannot start, for a reason the user can mend; starting again would not help."""

    message: str


ToParent = (
    Phase
    | Ready
    | Alive
    | EngineUp
    | EngineDown
    | EngineLeaving
    | ServerForgotten
    | HeadEnded
    | GroupBegins
    | GroupEnds
    | Notice
    | Placed
    | Refused
)
