"""From wishes to a running server: find the checkpoint, bind the port, plan, supervise.

Everything that can be refused is refused here, before any child starts and any weight is read.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from glimt import __version__
from glimt.builtin.defaults import with_defaults
from glimt.checkpoint import Checkpoint, read_checkpoint
from glimt.config import (
    CacheSettings,
    ServerSettings,
    Settings,
    names_in,
    parse_count,
    parse_object,
    parse_profiler,
)
from glimt.config_check import check
from glimt.copies import copies_of
from glimt.errors import BadSettings
from glimt.hub import locate
from glimt.models.config_json import read_config
from glimt.models.split import check_sizes
from glimt.placement.orders import wants_ray
from glimt.placement.placer import Placer
from glimt.processes.checkpoint_defaults import chat_template, generation_defaults
from glimt.processes.control import CorsRules, EngineStart, ProfilerSettings, ServerStart
from glimt.processes.expert_group import expert_placement, shares_experts
from glimt.processes.far_plan import cluster_of, gate_start, muster_start, uplink_start
from glimt.processes.folders import remove_stale_folders
from glimt.processes.media_plan import (
    arena_bytes,
    counts_per_prompt,
    local_media_root,
    max_tokens,
    pixel_settings,
)
from glimt.processes.node import serve_node
from glimt.processes.sizes import longest_request
from glimt.processes.starting import Plan
from glimt.processes.supervisor import Supervisor
from glimt.processes.tls_plan import tls_files
from glimt.wire import ImageSettings, MediaLimits

DTYPES = {"half": "float16", "float": "float32"}


def serve(settings: Settings, say: Callable[[str], None]) -> int:
    """Run `glimt serve`; the exit status. Raises StartupError."""
    settings = with_defaults(settings)
    say(f"glimt {__version__}: {settings.model}")
    check(settings)
    remove_stale_folders()
    parallel = settings.parallel
    if wants_ray(parallel):
        with bind(settings) as listener, Placer(settings, say) as placer:
            return _answer(placer.settings, listener, say)
    if parallel.node_rank or copies_of(parallel).role == "node":
        return _compute(settings, say)
    with bind(settings) as listener:
        return _answer(settings, listener, say)


def _answer(settings: Settings, listener: socket.socket, say: Callable[[str], None]) -> int:
    """Serve HTTP on this machine."""
    for note in check(settings):
        say(f"  note: {note}")
    plan = resolve(settings, say)
    for line in (*describe(settings), f"resolved: {resolved(plan)}"):
        say(f"  {line}")
    return asyncio.run(_supervise(plan, listener, say))


def _compute(settings: Settings, say: Callable[[str], None]) -> int:
    """Work for a machine that has HTTP."""
    for note in check(settings):
        say(f"  note: {note}")
    plan = resolve(settings, say)
    if settings.parallel.node_rank:
        return serve_node(plan.engine, settings.parallel.node_rank, say)
    return asyncio.run(_supervise(plan, None, say))


def resolve(settings: Settings, say: Callable[[str], None]) -> Plan:
    """Find or download the checkpoint and plan. `settings` are checked. Raises StartupError."""
    models = settings.models
    path = locate(
        settings.model,
        revision=models.revision,
        download_dir=models.download_dir,
        weights=models.load_format != "dummy",
    )
    checkpoint = read_checkpoint(path, overrides=parse_object(models.hf_overrides))
    for note in checkpoint.notes:
        say(f"  note: {note}")
    return make_plan(settings, checkpoint)


async def _supervise(plan: Plan, listener: socket.socket | None, say: Callable[[str], None]) -> int:
    return await Supervisor(plan, listener, say).run()


def bind(settings: Settings) -> socket.socket:
    """The listening socket, taken before anything slow happens. Raises BadSettings."""
    server = settings.server
    if server.uds is not None:
        family = socket.AF_UNIX
        if Path(server.uds).is_socket():  # of a server that was killed; never any other file
            Path(server.uds).unlink()
    else:
        family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        if server.uds is None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(server.uds or (server.host, server.port))
    except OSError as error:
        listener.close()
        where = server.uds or f"{server.host}:{server.port}"
        why = str(error.strerror)
        if error.errno == errno.EADDRINUSE:
            flag = "--port" if server.uds is None else "--uds"
            why += f"; stop what is there, or give another {flag}"
        raise BadSettings(f"cannot listen on {where}: {why}") from None
    listener.listen(2048)
    return listener


def describe(settings: Settings) -> list[str]:
    """The settings that are not at their default, one line a group."""
    lines = []
    for name in ("models", "cache", "media", "parallel", "server"):
        group = getattr(settings, name)
        defaults = type(group)()
        changed = [
            f"{field.replace('_', '-')}={_shown(field, getattr(group, field))}"
            for field in group.__dataclass_fields__
            if getattr(group, field) != getattr(defaults, field)
        ]
        if changed:
            lines.append(f"{name}: {', '.join(changed)}")
    return lines


def resolved(plan: Plan) -> str:
    """What the server half made of wishes and checkpoint. The engine says its own half."""
    server = plan.server
    sampling = " ".join(
        f"{name}={value}" for name, value in sorted(server.generation_defaults.items())
    )
    fields = {
        "model_path": server.model_path,
        "media_workers": plan.num_media_workers,
        "media_cache": f"{plan.arena_bytes / 2**30:.2f} GiB",
        "images": f"{server.max_images} of at most {max_tokens(server.image)} tokens",
        "videos": f"{server.max_videos} of at most {max_tokens(server.video)} tokens",
        "frames": f"{server.video.sampler}, {server.video.fps:g} fps",
        "api_keys": len(server.api_keys),
        "admin_keys": len(server.admin_keys),
        "sampling defaults": sampling,
    }
    return ", ".join(f"{name}={value}" for name, value in fields.items())


def _shown(field: str, value: Any) -> str:
    return "(hidden)" if field in ("api_key", "admin_key", "master_token") else str(value)


def make_plan(settings: Settings, checkpoint: Checkpoint) -> Plan:
    """What to start, from wishes and checkpoint. Raises BadSettings, BadCheckpoint."""
    if settings.models.quantization == "compressed-tensors" and not (
        checkpoint.config.get("quantization_config")
    ):
        raise BadSettings(
            "--quantization compressed-tensors: this checkpoint is not quantised; leave the flag "
            "out, or use --quantization fp8 to make FP8 of it while loading"
        )
    media = settings.media
    image, video = pixel_settings(media, checkpoint)
    server = _server_start(settings, checkpoint, image, video)
    engine = _engine_start(settings, checkpoint, image, video)
    parallel = settings.parallel
    text = read_config(checkpoint.config, checkpoint.preprocessor_config).text
    longest_request(engine, text.max_position_embeddings)  # engines ask again
    check_sizes(
        text,
        parallel.tensor_parallel_size,
        whole_experts=parallel.enable_expert_parallel,
    )
    shares = shares_experts(parallel, checkpoint)
    return Plan(
        engine=engine,
        server=server,
        copies=copies_of(parallel).local,
        shares_experts=shares,
        muster=muster_start(parallel, engine) if shares else None,
        gate=gate_start(parallel, engine),
        uplink=uplink_start(parallel, engine),
        num_media_workers=_num_media_workers(settings),
        arena_bytes=arena_bytes(
            media,
            image,
            video,
            {"image": server.max_images, "video": server.max_videos},
            server.max_model_len,
        ),
        shares_images=media.mm_processor_cache_type == "shm",
        shutdown_timeout_s=settings.server.shutdown_timeout,
    )


def _num_media_workers(settings: Settings) -> int:
    """Over all server processes, each of which needs one."""
    wanted = settings.media.media_workers
    num_servers = settings.parallel.api_server_count
    return wanted or max(num_servers, min(8, (os.cpu_count() or 2) // 2))


def _engine_start(
    settings: Settings, checkpoint: Checkpoint, image: ImageSettings, video: ImageSettings
) -> EngineStart:
    models, cache, server = settings.models, settings.cache, settings.server
    parallel, wanted = settings.parallel, cache.kv_cache_memory_bytes
    num_copies = copies_of(parallel).here
    start = EngineStart(
        index=0,
        num_ranks_here=parallel.tensor_parallel_size * num_copies // parallel.nnodes,
        inbox="",
        server_inboxes=(),
        arena_fds=(),
        model_path=str(checkpoint.path),
        hf_overrides=parse_object(models.hf_overrides),
        load_format=models.load_format,
        quantization="fp8" if models.quantization == "fp8" else None,
        dtype=DTYPES.get(models.dtype, models.dtype),
        kv_cache_dtype="auto" if cache.kv_cache_dtype == "auto" else "fp8",
        kv_cache_memory_bytes=None if wanted is None else parse_count(wanted),
        memory_utilization=cache.gpu_memory_utilization,
        device=cache.device,
        enforce_eager=models.enforce_eager,
        page_size=cache.block_size,
        max_model_len=_max_model_len(models.max_model_len),
        max_num_batched_tokens=cache.max_num_batched_tokens,
        max_num_seqs=cache.max_num_seqs,
        prefix_caching=cache.enable_prefix_caching,
        policy=cache.scheduling_policy,
        overlap=cache.async_scheduling,
        seed=models.seed or 0,
        max_logprobs=server.max_logprobs,
        estimates_work=cache.enable_mfu_metrics,
        counts_experts=cache.enable_expert_load_metrics,
        watched_pages=cache.kv_cache_metrics_sample if cache.kv_cache_metrics else 0.0,
        profiler=_profiler(cache.profiler_config),
        image_max_tokens=max(max_tokens(image), max_tokens(video)),
        tensor_parallel_size=parallel.tensor_parallel_size,
        expert_parallel=parallel.enable_expert_parallel,
        expert_placement=expert_placement(parallel, checkpoint),
        all2all_backend=parallel.all2all_backend,
        encoder_tp_mode=settings.media.mm_encoder_tp_mode,
        disable_custom_all_reduce=parallel.disable_custom_all_reduce,
        num_nodes=parallel.nnodes,
        folder="",
        log_level=server.log_level,
        log_json=server.log_json,
    )
    return msgspec.structs.replace(start, cluster=cluster_of(parallel, start))


def _profiler(text: str | None) -> ProfilerSettings | None:
    if text is None:
        return None
    wishes = parse_profiler(text)
    return ProfilerSettings(
        folder=wishes["torch_profiler_dir"],
        with_stack=wishes["torch_profiler_with_stack"],
        with_flops=wishes["torch_profiler_with_flops"],
        record_shapes=wishes["torch_profiler_record_shapes"],
        with_memory=wishes["torch_profiler_with_memory"],
        gzip=wishes["torch_profiler_use_gzip"],
    )


def _max_model_len(text: str | None) -> int | None:
    if text is None:
        return None
    return 0 if text in ("auto", "-1") else parse_count(text)


def _server_start(
    settings: Settings, checkpoint: Checkpoint, image: ImageSettings, video: ImageSettings
) -> ServerStart:
    models, media, server = settings.models, settings.media, settings.server
    config = read_config(checkpoint.config, checkpoint.preprocessor_config)
    counts = counts_per_prompt(media)
    return ServerStart(
        index=0,
        inbox="",
        media_hub="",
        arena_fd=-1,
        num_servers=settings.parallel.api_server_count,
        socket_fd=-1,
        model_path=str(checkpoint.path),
        served_model_names=tuple(models.served_model_name or [settings.model]),
        max_model_len=_max_model_len(models.max_model_len) or config.text.max_position_embeddings,
        chat_template=chat_template(settings.models, checkpoint),
        chat_template_kwargs=parse_object(models.default_chat_template_kwargs),
        content_format=models.chat_template_content_format,
        generation_defaults=generation_defaults(settings.models, checkpoint),
        image=image,
        video=video,
        limits=MediaLimits(max_image_pixels=media.max_image_pixels),
        max_images=counts["image"],
        max_videos=counts["video"],
        allowed_local_media_path=local_media_root(media.allowed_local_media_path),
        allowed_media_domains=_domains(media.allowed_media_domains),
        api_keys=_keys(server.api_key, server.api_key_file, "--api-key-file"),
        tls=tls_files(server),
        log_access=not server.disable_uvicorn_access_log,
        quiet_paths=tuple((server.disable_access_log_for_endpoints or "").split(",")),
        response_role=server.response_role,
        otlp_traces_endpoint=server.otlp_traces_endpoint,
        admin_keys=_keys(server.admin_key, server.admin_key_file, "--admin-key-file"),
        first_token_timeout_s=server.first_token_timeout,
        cache_config=_cache_labels(settings.cache),
        seed=models.seed,
        priority_policy=settings.cache.scheduling_policy == "priority",
        root_path=server.root_path,
        cors=_cors(server),
        reasoning_parser=server.reasoning_parser,
        box_tokens=server.box_tokens,
        reasoning_content=server.enable_reasoning_content,
        tool_call_parser=server.tool_call_parser,
        auto_tool_choice=server.enable_auto_tool_choice,
        hide_uncallable_tools=server.exclude_tools_when_tool_choice_none,
        tool_strict_level=server.tool_strict_level,
        max_logprobs=server.max_logprobs,
        max_num_queued_reqs=server.max_num_queued_reqs,
        prompt_tokens_details=server.enable_prompt_tokens_details,
        force_include_usage=server.enable_force_include_usage,
        request_id_headers=server.enable_request_id_headers,
        strict_fields=server.strict_fields,
        trust_request_template=server.trust_request_chat_template,
        log_level=server.log_level,
        log_json=server.log_json,
        log_requests=server.enable_log_requests,
        log_stats=not server.disable_log_stats,
    )


def _domains(allowed: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if allowed is None else tuple(allowed)


def _cache_labels(cache: CacheSettings) -> dict[str, str]:
    """Labels of vllm:cache_config_info beside those that the engine resolves."""
    return {
        "gpu_memory_utilization": f"{cache.gpu_memory_utilization:g}",
        "enable_prefix_caching": str(cache.enable_prefix_caching),
        "prefix_caching_hash_algo": "sha256",
    }


def _cors(server: ServerSettings) -> CorsRules:
    return CorsRules(
        origins=names_in(server.allowed_origins),
        methods=names_in(server.allowed_methods) or ("GET", "POST"),
        headers=names_in(server.allowed_headers) or ("*",),
        credentials=server.allow_credentials,
    )


def _keys(given: list[str] | None, file: str | None, flag: str) -> tuple[str, ...]:
    """Keys from the command line (or the environment) and from a file, one a line."""
    keys = list(given or ())
    if file is not None:
        try:
            in_file = Path(file).read_text("utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise BadSettings(f"{flag}: {error}") from None
        if not in_file:
            raise BadSettings(f"{flag} {file} holds no key")
        keys += in_file
    return tuple(keys)
