"""What the processes of a server are started with, from wishes and a checkpoint."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from glimt.checkpoint import Checkpoint
from glimt.config import (
    CacheSettings,
    ServerSettings,
    Settings,
    names_in,
    parse_count,
    parse_object,
    parse_profiler,
)
from glimt.copies import copies_of
from glimt.errors import BadSettings
from glimt.models.config_json import read_config
from glimt.models.split import check_sizes
from glimt.processes.checkpoint_defaults import chat_template, generation_defaults
from glimt.processes.control import CorsRules, EngineStart, ProfilerSettings, ServerStart
from glimt.processes.expert_group import expert_placement, shares_experts
from glimt.processes.far_plan import cluster_of, gate_start, muster_start, uplink_start
from glimt.processes.media_plan import (
    arena_bytes,
    counts_per_prompt,
    local_media_root,
    max_tokens,
    pixel_settings,
)
from glimt.processes.sizes import longest_request
from glimt.processes.starting import Plan
from glimt.processes.tls_plan import tls_files
from glimt.wire import ImageSettings, MediaLimits

_DTYPES = {"half": "float16", "float": "float32"}  # other spellings


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
        dtype=_DTYPES.get(models.dtype, models.dtype),
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
