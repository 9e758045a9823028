"""What the routes need to know and to talk to: all of it given, nothing looked up."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glimt.api.limits import HttpLimits
from glimt.api.params import SamplingDefaults
from glimt.frontend.client import EngineClient
from glimt.frontend.prompt import MediaPreparer
from glimt.frontend.render import Renderer
from glimt.frontend.tokenizer import Tokenizer
from glimt.metrics import Metrics


@dataclass
class Lifecycle:
    """Where the server is in its life; its owner is the server process."""

    is_draining: bool = False  # takes nothing new


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
    metrics: Metrics
    lifecycle: Lifecycle
    defaults: SamplingDefaults
    clock: Callable[[], float]  # monotonic seconds
    wall_clock: Callable[[], float]  # seconds since 1970, only shown
    seeds: random.Random  # of requests that bring none
    random: random.Random  # ids
    started_at: int  # seconds since 1970
    api_keys: tuple[str, ...] = ()
    limits: HttpLimits = field(default_factory=HttpLimits)
    max_images: int = 32
    max_videos: int = 2
    parse_reasoning: bool = False  # thoughts apart from content
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)  # below the request's own
    priority_policy: bool = False  # priorities count
    prompt_tokens_details: bool = True
    force_include_usage: bool = False
    request_id_headers: bool = True
    log_requests: bool = False
    allowed_origins: tuple[str, ...] = ()
