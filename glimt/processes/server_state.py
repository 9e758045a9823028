"""What a server's routes are given, from what the supervisor told the process to be."""

import logging
import random
import time
from collections.abc import Callable

from glimt import __version__
from glimt.api.params import SamplingDefaults
from glimt.api.state import ApiState, Lifecycle, NoticeKind
from glimt.api.tools import ToolSettings
from glimt.frontend.client import EngineClient
from glimt.frontend.grammars import GrammarChecker
from glimt.frontend.media_pool import MediaPool
from glimt.frontend.render import Renderer
from glimt.frontend.template import ChatTemplate, check_operators_kwargs
from glimt.frontend.tokenizer import Tokenizer
from glimt.metrics import Metrics
from glimt.processes.control import ServerStart
from glimt.traces import Tracer

log = logging.getLogger(__name__)


def make_state(
    start: ServerStart,
    *,
    client: EngineClient,
    media: MediaPool,
    tokenizer: Tokenizer,
    grammars: GrammarChecker,
    metrics: Metrics,
    lifecycle: Lifecycle,
    tracer: Tracer | None,
    tell_others: Callable[[NoticeKind, str], object],
) -> ApiState:
    """What one server's routes share. Raises StartupError for what the operator can mend."""
    return ApiState(
        served_names=start.served_model_names,
        model_name=start.model_path,
        version=__version__,
        client=client,
        renderer=_renderer(start, tokenizer),
        media=media,
        tokenizer=tokenizer,
        grammars=grammars,
        metrics=metrics,
        lifecycle=lifecycle,
        defaults=SamplingDefaults.from_generation_config(start.generation_defaults),
        template_kwargs=start.chat_template_kwargs,
        clock=time.monotonic,
        wall_clock=time.time,
        random=random.SystemRandom(),
        seeds=_seeds(start),
        started_at=int(time.time()),
        forget_pixels=media.forget_unleased,
        tell_others=tell_others,
        api_keys=start.api_keys,
        admin_keys=start.admin_keys,
        tracer=tracer,
        log_access=start.log_access,
        quiet_paths=frozenset(start.quiet_paths),
        response_role=start.response_role,
        first_token_timeout_s=start.first_token_timeout_s,
        max_images=start.max_images,
        max_videos=start.max_videos,
        parse_reasoning=start.reasoning_parser is not None,
        boxes=start.box_tokens,
        reasoning_content=start.reasoning_content,
        tools=_tools(start, tokenizer),
        priority_policy=start.priority_policy,
        prompt_tokens_details=start.prompt_tokens_details,
        force_include_usage=start.force_include_usage,
        request_id_headers=start.request_id_headers,
        log_requests=start.log_requests,
        strict_fields=start.strict_fields,
        trust_request_template=start.trust_request_template,
        media_settings={"image": start.image, "video": start.video},
        allowed_origins=start.cors.origins,
        allowed_methods=start.cors.methods,
        allowed_headers=start.cors.headers,
        allow_credentials=start.cors.credentials,
    )


def _renderer(start: ServerStart, tokenizer: Tokenizer) -> Renderer:
    template = ChatTemplate(start.chat_template)
    check_operators_kwargs(start.chat_template_kwargs, template)
    return Renderer(tokenizer, template, start.image, start.max_model_len, start.content_format)


def _tools(start: ServerStart, tokenizer: Tokenizer) -> ToolSettings:
    tools = ToolSettings.of(
        tokenizer,
        start.tool_call_parser,
        auto=start.auto_tool_choice,
        hide_when_none=start.hide_uncallable_tools,
        strict_level=start.tool_strict_level,
    )
    if tools.parser is not None and tools.tokens is None:
        log.warning("the checkpoint has no tokens for tool calls: requests with tools get 400")
    return tools


def _seeds(start: ServerStart) -> random.Random:
    """Of requests that bring none; with --seed, a sequence of each server's own."""
    if start.seed is None:
        return random.SystemRandom()
    return random.Random(f"{start.seed} {start.index}" if start.index else start.seed)
