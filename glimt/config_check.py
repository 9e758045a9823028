"""Judges the wishes of the user before anything is read or started: all problems at once."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence

from glimt import copies
from glimt.config import (
    ParallelSettings,
    ServerSettings,
    Settings,
    names_in,
    parse_count,
    parse_object,
    parse_profiler,
)
from glimt.errors import BadSettings
from glimt.placement import orders

MAX_SERVERS = 64

_LEAVE_OUT = {
    "structured outputs are made by llguidance, for every request": (
        *("structured-outputs-config", "guided-decoding-backend"),
    ),
    "requests may do that anyhow, within the operator's sizes": ("trust-request-mm-kwargs",),
    "a request asks for that": ("return-tokens-as-token-ids",),
    "it is always on": ("enable-server-load-tracking",),
    "preempted requests are computed again, nothing is swapped": ("swap-space",),
    "this serves chat models only": ("task", "runner", "convert"),
    "the tokenizer is the checkpoint's own": ("tokenizer", "tokenizer-mode", "tokenizer-revision"),
    "texts are never logged": ("enable-log-outputs", "max-log-len"),
    "/openapi.json is behind the key like every route": ("disable-fastapi-docs",),
    "each rank reads only its experts from the disk": ("enable-ep-weight-filter",),
    "the host plans ahead, and the shared expert computes beside the exchange of rows": (
        *("enable-dbo", "ubatch-size", "dbo-decode-token-threshold", "dbo-prefill-token-threshold"),
    ),
    "a rank that is silent for six seconds is ended": ("distributed-timeout-seconds",),
    "weights are mapped and read in parallel": (
        *("safetensors-load-strategy", "max-parallel-loading-workers"),
    ),
    "any item may have all of --mm-processor-cache-gb": ("mm-shm-cache-max-object-size-mb",),
    "pixels lie in shared memory and are read in place": ("mm-tensor-ipc",),
    "pixels travel as bytes and are normalised on the device": ("mm-device-do-normalize",),
    "room for images is calculated, nothing is profiled": ("skip-mm-profiling",),
    "media stand where the message has them": ("interleave-mm-strings",),
    "prompts are cut at --max-num-batched-tokens, wherever that falls": (
        *("disable-chunked-mm-input", "long-prefill-token-threshold", "max-num-partial-prefills"),
    ),
    "attention has one kernel for each device": ("attention-backend", "mm-encoder-attn-backend"),
    "each step sends what it made": ("stream-interval",),
    "log-probabilities are those of the model, before temperature and penalties": (
        "logprobs-mode",
    ),
    "pages are known by SHA-256": ("prefix-caching-hash-algo",),
    "/metrics shows all there is": ("show-hidden-metrics-for-version",),
    "headers are bounded (docs/serving.md, limits)": (
        *("h11-max-incomplete-event-size", "h11-max-header-count"),
    ),
    "Ray only places machines, no worker is its actor": ("ray-workers-use-nsight",),
}
_NOT_DONE = {
    "weights stay on the device: use more GPUs (--tensor-parallel-size), or --quantization fp8": (
        *("cpu-offload-gb", "cpu-offload-params", "offload-group-size"),
        *("kv-offloading-size", "kv-offloading-backend"),
    ),
    "there is no speculative decoding: leave it out": (
        *("speculative-config", "speculative-model", "num-speculative-tokens"),
    ),
    "adapters are not loaded: merge them into the checkpoint": (
        *("enable-lora", "lora-modules", "max-lora-rank", "max-loras", "max-cpu-loras"),
        *("default-mm-loras", "enable-tower-connector-lora"),
    ),
    "no code is loaded into the server: leave it out": (
        *("middleware", "logits-processors", "worker-cls", "worker-extension-cls"),
    ),
    "prompts and answers are made in one place: leave it out": (
        *("kv-transfer-config", "ec-transfer-config", "enable-mm-embeds"),
    ),
    "experts do not move while it runs: leave it out, collect what they have to do and place them "
    "by it (glimt experts, --expert-placement)": ("enable-eplb", "eplb-config"),
    "further copies of experts come with a placement: glimt experts place --redundant": (
        *("num-redundant-experts",),
    ),
    "a request's KV is not split over GPUs: use --tensor-parallel-size": (
        *("decode-context-parallel-size", "prefill-context-parallel-size"),
    ),
    "start one server for each copy, each with --data-parallel-rank and a --port of its own": (
        *("data-parallel-multi-port-external-lb",),
    ),
    "processes are not tied to cores: start it under numactl, or leave it out": ("numa-bind",),
    """media can be refused: --limit-mm-per-prompt '{"image": 0, "video": 0}'""": (
        *("language-model-only",),
    ),
    "no tokens of videos are dropped: give --media-io-kwargs fewer frames": ("video-pruning-rate",),
    "all layers have --kv-cache-dtype": ("kv-cache-dtype-skip-layers",),
    "give --max-num-batched-tokens and --max-num-seqs": ("performance-mode",),
    "spans are of whole requests: --otlp-traces-endpoint is enough": ("collect-detailed-traces",),
    "GPUs are neither added nor taken away while it runs: leave it out": ("enable-elastic-ep",),
    "graphs are recorded as they are needed; --enforce-eager turns them off": (
        *("compilation-config", "optimization-level", "cuda-graph-sizes"),
        *("cudagraph-capture-sizes",),
    ),
    "only HTTP is spoken: leave it out": ("grpc",),
}
_SHORT = {
    "-cc": "compilation-config",
    "-dcp": "decode-context-parallel-size",
    "-pcp": "prefill-context-parallel-size",
    **{f"-O{level}": "optimization-level" for level in range(4)},
}


def refuse_elsewheres(arguments: Sequence[str]) -> None:
    """Raise BadSettings for flags of vLLM's that have no counterpart here, each with its cure."""
    reasons = {
        **{name: f"{why}: leave it out" for why, names in _LEAVE_OUT.items() for name in names},
        **{name: why for why, names in _NOT_DONE.items() for name in names},
    }
    problems = []
    for argument in arguments:
        flag = argument.partition("=")[0].partition(".")[0]
        long = flag.removeprefix("--").removeprefix("no-").replace("_", "-")
        name = long if flag.startswith("--") else _SHORT.get(flag, "")
        if name in reasons:
            problems.append(f"{flag}: {reasons[name]}")
    if problems:
        raise BadSettings("these flags are vLLM's and not Glimt's:", problems)


def refuse_empty_keys(environment: Mapping[str, str]) -> None:
    """Raises BadSettings where a variable that should hold keys is set and empty."""
    for name in ("GLIMT_API_KEY", "GLIMT_ADMIN_KEY"):
        if environment.get(name) == "":
            raise BadSettings(f"{name} is set and empty: give it a key, or unset it")


def drop_service_link(environment: MutableMapping[str, str]) -> str | None:
    """Take GLIMT_PORT out where Kubernetes has set it to the address of a service named glimt, and
    give a note; None where it has not.
    """
    port = environment.get("GLIMT_PORT", "")
    if not port.startswith(("tcp://", "udp://")):
        return None
    del environment["GLIMT_PORT"]
    return (
        f"GLIMT_PORT={port} comes from a Kubernetes service named glimt, and is not taken for "
        "--port; enableServiceLinks: false in the pod keeps it away"
    )


def check(settings: Settings) -> list[str]:
    """Check everything that needs no checkpoint and no GPU; give notes to print.

    Raises BadSettings with all problems at once.
    """
    wants_ray = orders.wants_ray(settings.parallel)
    problems = [
        *_without_values(settings),
        *_later(settings),
        *_counts(settings.parallel),
        *(orders.problems if wants_ray else _machines)(settings.parallel),
        *_experts(settings.parallel),
        *_ranges(settings),
    ]
    if problems:
        raise BadSettings("these settings cannot be used:", problems)
    return list(_notes(settings))


def _without_values(settings: Settings) -> Iterator[str]:
    """A list of keys that is empty would let everybody in."""
    for group in (settings.models, settings.cache, settings.media, settings.server):
        for field in dataclasses.fields(group):
            if getattr(group, field.name) == []:
                flag = f"--{field.name.replace('_', '-')}"
                yield f"{flag}: it was given without a value (an unset variable?)"


def _later(settings: Settings) -> Iterator[str]:
    """Flags that are known by name and whose work is not in this version."""
    parallel = settings.parallel
    if parallel.pipeline_parallel_size != 1:
        yield (
            f"--pipeline-parallel-size {parallel.pipeline_parallel_size}: models are not run in "
            "stages: leave it out or set it to 1"
        )
    if parallel.distributed_executor_backend == "uni" and parallel.tensor_parallel_size > 1:
        yield (
            f"--distributed-executor-backend uni is one process, and --tensor-parallel-size "
            f"{parallel.tensor_parallel_size} needs as many: use mp, or leave it out"
        )
    if not settings.cache.enable_chunked_prefill:
        yield "--no-enable-chunked-prefill: prompts are always computed in chunks; leave it out"


def _counts(parallel: ParallelSettings) -> Iterator[str]:
    if parallel.tensor_parallel_size < 1:
        yield f"--tensor-parallel-size {parallel.tensor_parallel_size}: must be at least 1"
    if not 1 <= parallel.api_server_count <= MAX_SERVERS:
        yield f"--api-server-count {parallel.api_server_count}: must be 1 to {MAX_SERVERS}"
    if not orders.wants_ray(parallel):
        yield from copies.problems(parallel)


def _experts(parallel: ParallelSettings) -> Iterator[str]:
    placed = parallel.expert_placement is not None
    if placed and not parallel.enable_expert_parallel:
        yield "--expert-placement needs --enable-expert-parallel: else each GPU has all experts"
    if placed and parallel.expert_placement_strategy != "linear":
        yield "--expert-placement and --expert-placement-strategy: one or the other"


def _machines(parallel: ParallelSettings) -> Iterator[str]:
    nodes, rank, size = parallel.nnodes, parallel.node_rank, parallel.tensor_parallel_size
    if nodes <= 1:
        yield from _one_machine(parallel)
        return
    if not 0 <= rank < nodes:
        yield f"--node-rank {rank}: with --nnodes {nodes}, 0 to {nodes - 1}"
    if size % nodes:
        yield f"--tensor-parallel-size {size}: must be a multiple of --nnodes {nodes}"
    if copies.copies_of(parallel).here > 1:
        yield (
            f"--data-parallel-size {parallel.data_parallel_size}: with --nnodes a machine computes "
            "for one copy: --data-parallel-size-local 1, and the other copies join (--headless) or "
            "are servers of their own (--data-parallel-rank)"
        )
    yield from _first_machine(parallel)


def _one_machine(parallel: ParallelSettings) -> Iterator[str]:
    if parallel.nnodes < 1:
        yield f"--nnodes {parallel.nnodes}: must be at least 1"
    here = copies.copies_of(parallel).here
    knows_others = copies.copies_of(parallel).spans_machines
    knows_others |= len(copies.expert_copies(parallel)) > here
    for flag, wanted in (
        ("--node-rank", parallel.node_rank != 0),
        ("--master-addr", parallel.master_addr is not None),
        ("--master-port", parallel.master_port is not None),
        ("--master-token", parallel.master_token is not None and not knows_others),
    ):
        if wanted:
            yield f"{flag} is for several machines: give --nnodes as well, or leave it out"


def _first_machine(parallel: ParallelSettings) -> Iterator[str]:
    """How the machines find the first, and show that they may."""
    if parallel.master_addr is None:
        yield f"--nnodes {parallel.nnodes} needs --master-addr, the address of node 0"
    if parallel.master_addr in ("0.0.0.0", "::"):
        yield f"--master-addr {parallel.master_addr}: name the address that the other nodes reach"
    if parallel.master_port is not None and not 1 <= parallel.master_port <= 65535:
        yield f"--master-port {parallel.master_port}: must be 1 to 65535"
    if len(parallel.master_token or "") < copies.MIN_TOKEN_LENGTH:
        yield (
            f"--nnodes {parallel.nnodes} needs a --master-token of {copies.MIN_TOKEN_LENGTH} "
            "characters or more, the same on all nodes (GLIMT_MASTER_TOKEN): who does not know it "
            "is not let in"
        )


def _ranges(settings: Settings) -> Iterator[str]:
    cache, media, server = settings.cache, settings.media, settings.server
    if not 0 < cache.gpu_memory_utilization <= 1:
        yield f"--gpu-memory-utilization {cache.gpu_memory_utilization}: must be above 0, at most 1"
    for flag, value in (
        ("--max-num-batched-tokens", cache.max_num_batched_tokens),
        ("--max-num-seqs", cache.max_num_seqs),
        ("--media-workers", media.media_workers),
        ("--max-image-pixels", media.max_image_pixels),
        ("--max-num-queued-reqs", server.max_num_queued_reqs),
    ):
        if value is not None and value < 1:
            yield f"{flag} {value}: must be at least 1"
    if cache.block_size is not None and cache.block_size not in (8, 16, 32, 64, 128):
        yield f"--block-size {cache.block_size}: must be 8, 16, 32, 64 or 128"
    if (
        cache.max_num_batched_tokens is not None
        and cache.max_num_seqs is not None
        and cache.max_num_batched_tokens < cache.max_num_seqs
    ):
        yield "--max-num-batched-tokens must be at least --max-num-seqs"
    if not 0 <= server.port <= 65535:
        yield f"--port {server.port}: must be 0 to 65535"
    if not 0 < media.mm_processor_cache_gb < math.inf:
        yield "--mm-processor-cache-gb: must be above 0 (images pass through this memory)"
    yield from _server_ranges(server)
    if not -(2**63) <= (settings.models.seed or 0) < 2**63:
        yield f"--seed {settings.models.seed}: must fit 64 bits"
    if not all(settings.models.served_model_name or ["-"]):
        yield "--served-model-name: a name must not be empty"
    yield from _several_servers(settings)
    yield from _unreadable(settings)


def _several_servers(settings: Settings) -> Iterator[str]:
    """What several server processes cannot do with."""
    count, workers = settings.parallel.api_server_count, settings.media.media_workers
    if count == 1:
        return
    if workers is not None and workers < count:
        yield (
            f"--media-workers {workers}: each of the {count} server processes needs one of its "
            f"own; use at least {count}, or leave it out"
        )


def _server_ranges(server: ServerSettings) -> Iterator[str]:
    if server.max_logprobs < 0:
        yield f"--max-logprobs {server.max_logprobs}: must be at least 0"
    if not 0 <= server.first_token_timeout < math.inf:
        yield f"--first-token-timeout {server.first_token_timeout}: must be 0 or more seconds"
    if not all([*(server.api_key or ["-"]), *(server.admin_key or ["-"])]):
        yield "--api-key and --admin-key: a key must not be empty"
    if set(server.api_key or ()) & set(server.admin_key or ()):
        yield "--api-key and --admin-key: a key cannot be both a client's and an operator's"
    if server.allow_credentials and "*" in names_in(server.allowed_origins):
        yield "--allow-credentials: name the origins; any page at all could act as its visitors"
    if not (server.otlp_traces_endpoint or "http://").startswith(("http://", "https://")):
        yield (
            f"--otlp-traces-endpoint {server.otlp_traces_endpoint}: only OTLP over HTTP is spoken; "
            "collectors take that on port 4318, at /v1/traces"
        )
    if server.ssl_certfile is None and (
        server.ssl_keyfile or server.ssl_ca_certs or server.ssl_cert_reqs or server.ssl_ciphers
    ):
        yield "--ssl-keyfile and its kin need --ssl-certfile"
    if server.ssl_cert_reqs and server.ssl_ca_certs is None:
        yield "--ssl-cert-reqs needs --ssl-ca-certs: nobody's certificate would be trusted"
    if not 0 <= server.shutdown_timeout < math.inf:
        yield f"--shutdown-timeout {server.shutdown_timeout}: must be 0 or more seconds"


def _unreadable(settings: Settings) -> Iterator[str]:
    """Values that are text in the command line and something else in meaning, or lack another."""
    models, cache, media = settings.models, settings.cache, settings.media
    if settings.server.enable_auto_tool_choice and settings.server.tool_call_parser is None:
        yield "--enable-auto-tool-choice needs --tool-call-parser (glm45 or glm47)"
    for flag, text in (
        ("--hf-overrides", models.hf_overrides),
        ("--override-generation-config", models.override_generation_config),
        ("--default-chat-template-kwargs", models.default_chat_template_kwargs),
        ("--limit-mm-per-prompt", media.limit_mm_per_prompt),
        ("--mm-processor-kwargs", media.mm_processor_kwargs),
        ("--media-io-kwargs", media.media_io_kwargs),
    ):
        try:
            parse_object(text)
        except ValueError as error:
            yield f"{flag}: {error}"
    if not 0.0 < cache.kv_cache_metrics_sample <= 1.0:
        yield f"--kv-cache-metrics-sample {cache.kv_cache_metrics_sample}: must be above 0, up to 1"
    try:
        parse_profiler(cache.profiler_config)
    except ValueError as error:
        yield f"--profiler-config: {error}"
    for flag, text in (
        (
            "--max-model-len",
            None if models.max_model_len in ("auto", "-1") else models.max_model_len,
        ),
        ("--kv-cache-memory-bytes", cache.kv_cache_memory_bytes),
    ):
        try:
            parse_count(text or "1")
        except ValueError as error:
            yield f"{flag}: {error}"


def _notes(settings: Settings) -> Iterator[str]:
    """What is accepted and has no effect, or deserves a word."""
    parallel, server = settings.parallel, settings.server
    yield from copies.notes(parallel)
    sharing = len(copies.expert_copies(parallel))
    if parallel.enable_expert_parallel and parallel.tensor_parallel_size * sharing == 1:
        yield "--enable-expert-parallel has no effect on one GPU"
    if parallel.all2all_backend != "auto" and sharing <= 1:
        yield "--all2all-backend has no effect: no experts are shared between copies"
    if parallel.tensor_parallel_size == 1:
        if settings.media.mm_encoder_tp_mode == "data":
            yield "--mm-encoder-tp-mode data has no effect on one GPU"
        if parallel.disable_custom_all_reduce:
            yield "--disable-custom-all-reduce has no effect on one GPU"
    if settings.cache.enable_sleep_mode and not (server.admin_key or server.admin_key_file):
        yield "--enable-sleep-mode has no effect: /sleep and /wake_up need --admin-key"
    if settings.models.trust_remote_code:
        yield "--trust-remote-code has no effect: no code from a checkpoint is ever run"
    if settings.media.allowed_local_media_path == "/":
        yield "--allowed-local-media-path / lets every client read every image on this machine"
    exposed = server.uds is None and server.host not in ("127.0.0.1", "localhost", "::1")
    if exposed and not server.api_key and not server.api_key_file:
        yield f"--host {server.host} without an API key: everybody who reaches the port can use it"
