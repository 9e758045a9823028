"""What the routes need to know and to talk to: all of it given, nothing looked up."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from glimt.api.params import SamplingDefaults
from glimt.api.tools import ToolSettings
from glimt.board import Board
from glimt.frontend.boxes import BoxMode
from glimt.frontend.client import EngineClient
from glimt.frontend.grammars import GrammarChecker
from glimt.frontend.prompt import MediaPreparer
from glimt.frontend.render import Renderer
from glimt.frontend.tokenizer import Tokenizer
from glimt.metrics import Metrics
from glimt.traces import Tracer
from glimt.wire import ImageSettings

NoticeKind = Literal["end_open", "forget_pixels", "forget_routes"]
"""What other server processes are to do as well: end what is open, forget what they remember."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Sizes in bytes, times in seconds."""

    max_body_bytes: int = 64 * 2**20
    body_timeout_s: float = 60.0
    max_path_bytes: int = 8 * 2**10
    max_headers: int = 100
    max_header_bytes: int = 16 * 2**10  # of one
    max_headers_bytes: int = 32 * 2**10  # of all
    max_stalled_s: float = 60.0  # a reader that takes nothing for so long is dropped


@dataclass
class Lifecycle:
    """Where the server is in its life; its owner is the server process."""

    is_draining: bool = False  # takes nothing new
    board: Board = field(default_factory=Board)  # of all server processes

    @property
    def is_paused(self) -> bool:
        """Nothing new is taken until an operator changes it."""
        return self.board.is_paused

    @property
    def is_going_to_sleep(self) -> bool:
        """Nothing new is taken until the engines sleep or could not."""
        return self.board.wants_quiet


@dataclass(frozen=True, kw_only=True)
class ApiState:
    """One server's parts and settings."""

    served_names: tuple[str, ...]  # the first is the one in answers
    model_name: str  # as the operator gave it
    version: str
    client: EngineClient
    renderer: Renderer
    media: MediaPreparer
    tokenizer: Tokenizer
    grammars: GrammarChecker
    metrics: Metrics
    lifecycle: Lifecycle
    defaults: SamplingDefaults
    clock: Callable[[], float]  # monotonic seconds
    wall_clock: Callable[[], float]  # seconds since 1970, only shown
    seeds: random.Random  # of requests that bring none
    random: random.Random  # ids
    started_at: int  # seconds since 1970
    forget_pixels: Callable[[], None]  # those of media that nobody holds
    tell_others: Callable[[NoticeKind, str], object] = lambda kind, reason: None  # other servers
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()  # of operators; without one their routes do not exist
    first_token_timeout_s: float = 600.0  # 0 = none
    limits: HttpLimits = field(default_factory=HttpLimits)
    max_images: int = 32
    max_videos: int = 2
    parse_reasoning: bool = False  # thoughts apart from content
    reasoning_content: bool = True  # they are also shown under their older name
    boxes: BoxMode = "keep"
    tools: ToolSettings = field(default_factory=ToolSettings)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)  # below the request's own
    priority_policy: bool = False  # priorities count
    prompt_tokens_details: bool = True
    force_include_usage: bool = False
    request_id_headers: bool = True
    log_requests: bool = False
    tracer: Tracer | None = None  # takes a span for each request
    log_access: bool = True  # a line per finished request
    quiet_paths: frozenset[str] = frozenset()  # without such lines
    response_role: str = "assistant"
    media_settings: Mapping[str, ImageSettings] = field(default_factory=dict)  # by kind
    trust_request_template: bool = False
    strict_fields: bool = False  # unknown fields are refused, not reported
    allowed_origins: tuple[str, ...] = ()  # of web pages (CORS)
    allowed_methods: tuple[str, ...] = ("GET", "POST")
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
