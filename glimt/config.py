"""The wishes of the user: every flag of `glimt serve`, as frozen dataclasses.

The command line, the environment (GLIMT_MAX_MODEL_LEN=…) and a TOML file (`--config`) are all
made from these fields; names and meanings are vLLM's wherever a vLLM user would type them. A flag
whose work comes later is known here and refused by `config_check.py`, never ignored. What a wish
turns into is decided once and printed at start: by `processes/plan.py` from the checkpoint, by
`processes/sizes.py` and `processes/build.py` from the memory that is free (numbers of pages).
"""

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model, from where, in which form."""

    revision: str | None = None
    """Branch, tag or commit of the hub repository."""
    download_dir: str | None = None
    """Folder for downloads; default: the hub's cache (HF_HOME)."""
    load_format: Literal["auto", "safetensors", "dummy"] = "auto"
    """dummy: random weights of the right shapes, for benchmarks; only config.json is read."""
    quantization: Annotated[Literal["fp8", "compressed-tensors"] | None, Parameter(alias="-q")] = (
        None
    )
    """fp8: turn a BF16 checkpoint into FP8 while loading. FP8 checkpoints need no flag."""
    dtype: Literal["auto", "bfloat16", "float16", "half", "float32", "float"] = "auto"
    """Compute type. auto: the checkpoint's on a GPU, float32 on a CPU."""
    max_model_len: str | None = None
    """Longest prompt plus answer, in tokens: 65536, 64k (64,000), 64K (65,536), or auto (what
    fits). Default: the checkpoint's limit."""
    hf_overrides: str | None = None
    """JSON merged over config.json, e.g. '{"text_config": {"num_hidden_layers": 4}}'."""
    served_model_name: Annotated[
        list[str] | None, Parameter(consume_multiple=True, negative="")
    ] = None
    """Names that requests may use; the first is the one in answers. Default: the model as given."""
    seed: int | None = None
    """Makes requests without a `seed` of their own repeatable from start to start, in the order
    of their arrival, and chooses the weights of --load-format dummy. Default: drawn afresh."""
    generation_config: str = "auto"
    """Sampling defaults: auto (the checkpoint's file), vllm (none), or a folder."""
    override_generation_config: str | None = None
    """JSON merged over the sampling defaults."""
    chat_template: str | None = None
    """File with a Jinja template, in place of the checkpoint's."""
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    """How messages reach the template: as one text each (string), as lists of parts (openai), or
    as it takes them (auto: found out by rendering a message)."""
    default_chat_template_kwargs: str | None = None
    """JSON with defaults for the template, e.g. '{"enable_thinking": false}'."""
    trust_remote_code: bool = False
    """Accepted; Glimt never runs code from a checkpoint and needs none."""
    enforce_eager: bool = False
    """No CUDA graphs of steps: slower steps, but none waits for the recording of a graph."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Memory and scheduling of one engine."""

    gpu_memory_utilization: float = 0.92
    """Share of the device's memory for weights, activations and KV cache together. On a CPU: the
    share of the memory that is free at start, at most 4 GiB of it for the KV cache."""
    kv_cache_memory_bytes: str | None = None
    """Exact size of the KV cache (512M, 4G, or bytes), in place of the share above."""
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3"] = "auto"
    """auto: the compute type. fp8: half the memory, one scale per token and head."""
    block_size: int | None = None
    """Tokens per KV page; default 64 on a GPU, 16 on a CPU."""
    enable_prefix_caching: bool = True
    """Reuse the KV of equal prompt beginnings (tokens, images and salt)."""
    enable_chunked_prefill: bool = True
    """Always on: a step may hold parts of prompts beside running answers."""
    max_num_batched_tokens: int | None = None
    """Tokens per step; default 8192 on a GPU, 1024 on a CPU."""
    max_num_seqs: int | None = None
    """Requests that run at once; default 256 on a GPU, 32 on a CPU."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """priority: lower `priority` values first; the worst running request is preempted."""
    async_scheduling: bool = True
    """Plan the next step while the device works on this one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    enable_sleep_mode: bool = False
    """Accepted: with an admin key there are /sleep and /wake_up, with or without this."""
    enable_mfu_metrics: bool = False
    """Metrics of the operations and memory traffic of steps, by arithmetic."""
    enable_expert_load_metrics: bool = False
    """Metrics of how many tokens choose each expert and how unevenly; what `glimt experts collect`
    writes to a file. Costs one small kernel a layer."""
    kv_cache_metrics: bool = False
    """Metrics of how long known KV pages live, lie idle and wait for their next use."""
    kv_cache_metrics_sample: float = 0.01
    """Share of the pages that these metrics watch."""
    profiler_config: str | None = None
    """JSON that lets operators record profiles (/start_profile, /stop_profile), e.g.
    '{"profiler": "torch", "torch_profiler_dir": "/tmp/profiles"}'."""


@dataclass(frozen=True, kw_only=True)
class MediaSettings:
    """Images and videos."""

    allowed_local_media_path: str | None = None
    """Folder below which file:// addresses may be read; default: none."""
    allowed_media_domains: Annotated[
        list[str] | None, Parameter(consume_multiple=True, negative="")
    ] = None
    """Hosts from which media may be fetched; default: any public address."""
    limit_mm_per_prompt: str | None = None
    """JSON, e.g. '{"image": 8, "video": 1}'; default 32 images and 2 videos."""
    mm_processor_kwargs: str | None = None
    """JSON over the preprocessor settings, e.g. '{"size": {"longest_edge": 1003520}}'."""
    media_io_kwargs: str | None = None
    """JSON, e.g. '{"video": {"fps": 1, "max_frames": 64}}'."""
    mm_processor_cache_gb: float = 4.0
    """Shared memory for decoded images, in use and cached (GiB): of each server process; with shm
    of all together."""
    mm_processor_cache_type: Literal["lru", "shm"] = "lru"
    """Where decoded images are found again: in a cache of each server process (lru), or in one that
    all share and that outlives them (shm). Both lie in anonymous memory, read in place."""
    mm_encoder_tp_mode: Literal["weights", "data"] = "weights"
    """How tensor-parallel GPUs share the vision tower: split it, or deal the images out."""
    max_image_pixels: int = 50_000_000
    """Largest image, in pixels before resizing."""
    media_workers: int | None = None
    """Processes that decode images, dealt out to the server processes; default: half of the cores,
    1 to 8."""


@dataclass(frozen=True, kw_only=True)
class ParallelSettings:
    """Several GPUs and machines."""

    tensor_parallel_size: Annotated[int, Parameter(alias="-tp")] = 1
    """GPUs that share one copy of the model."""
    pipeline_parallel_size: Annotated[int, Parameter(alias="-pp")] = 1
    """Not planned: tensor and expert parallelism cover this family."""
    data_parallel_size: Annotated[int, Parameter(alias="-dp")] = 1
    """Copies of the model behind one address, each on tensor-parallel-size GPUs."""
    data_parallel_size_local: Annotated[int | None, Parameter(alias="-dpl")] = None
    """Copies on this machine, if there are others elsewhere; 0: HTTP only. Default: all, and with
    --headless those from data-parallel-start-rank on. With data-parallel-backend ray: copies that
    are together on each machine; default: any number."""
    data_parallel_start_rank: Annotated[int | None, Parameter(alias="-dpr")] = None
    """Number of the first copy on this machine: with --headless, for the machine that answers HTTP;
    without it as with data-parallel-hybrid-lb."""
    data_parallel_rank: Annotated[int | None, Parameter(alias="-dpn")] = None
    """Run one copy only, this one: a balancer of your own leads requests to the servers of all."""
    data_parallel_external_lb: Annotated[bool, Parameter(alias="-dpe")] = False
    """The same, said with data-parallel-rank or data-parallel-start-rank."""
    data_parallel_hybrid_lb: Annotated[bool, Parameter(alias="-dph")] = False
    """Each machine answers HTTP for its own copies; a balancer of your own stands before them."""
    data_parallel_address: Annotated[str | None, Parameter(alias="-dpa")] = None
    """Address of the machine that answers HTTP, at which those with further copies reach it (on a
    private network)."""
    data_parallel_rpc_port: Annotated[int | None, Parameter(alias="-dpp")] = None
    """Its port for them; default 29550."""
    data_parallel_backend: Annotated[Literal["mp", "ray"], Parameter(alias="-dpb")] = "mp"
    """Who starts the copies: this machine (mp), or Ray, which finds machines for them."""
    enable_expert_parallel: Annotated[bool, Parameter(alias="-ep")] = False
    """Spread whole experts over the GPUs of all copies, in place of splitting each over those of
    its copy."""
    expert_parallel_scope: Literal["all", "machine"] = "all"
    """Copies that share experts: of all machines that know each other, or of each machine."""
    expert_placement_strategy: Literal["linear", "round_robin"] = "linear"
    """Which GPU has which whole experts: the first the first ones, or each in turn."""
    expert_placement: str | None = None
    """File that says it for each layer, as `glimt experts place` makes it of measured loads."""
    all2all_backend: Literal["auto", "allgather_reducescatter", "alltoall"] = "auto"
    """How rows reach experts of other copies: all everywhere, each only where it is needed (steps
    with prompts), or what was measured to be faster (auto)."""
    distributed_executor_backend: Literal["mp", "uni", "ray"] | None = None
    """Who starts the ranks of a copy: its engine (mp; uni says that there is one), or Ray, which
    finds machines for them: one for each copy, or as many as --nnodes says."""
    nnodes: int = 1
    """Machines that the tensor-parallel ranks of a copy are spread over."""
    node_rank: int = 0
    """This machine's number; 0 answers HTTP, the others only compute."""
    master_addr: str | None = None
    """Address of machine 0, at which the others reach it (on a private network)."""
    master_port: int | None = None
    """Port of machine 0 for the other machines; default 29501."""
    master_token: str | None = None
    """What machines prove to each other to know: the same on all, 16 characters or more; better
    through GLIMT_MASTER_TOKEN."""
    headless: bool = False
    """No HTTP: compute copies for the machine at data-parallel-address. With --nnodes, accepted on
    machines other than 0, which have no HTTP with or without this."""
    api_server_count: Annotated[int, Parameter(alias="-asc")] = 1
    """HTTP server processes on the same port."""
    disable_custom_all_reduce: bool = False
    """Let NCCL do the small sums between GPUs as well, in place of kernels over shared memory."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """HTTP, keys, logs."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all (then set an API key)."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    uds: str | None = None
    """Listen on this Unix socket in place of host and port."""
    api_key: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None
    """Keys that clients must send; better through GLIMT_API_KEY or --api-key-file."""
    api_key_file: str | None = None
    """File with one key per line."""
    admin_key: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None
    """Keys of operators, who may pause the server and reset its caches; better through
    GLIMT_ADMIN_KEY or --admin-key-file. Without one, those routes do not exist."""
    admin_key_file: str | None = None
    """File with one admin key per line."""
    ssl_certfile: str | None = None
    """Certificate (PEM); turns the port into HTTPS."""
    ssl_keyfile: str | None = None
    """Its private key, unless that is in the same file."""
    ssl_ca_certs: str | None = None
    """Authorities that clients' certificates must come from."""
    ssl_cert_reqs: Literal[0, 1, 2] = 0
    """Certificates of clients: 0 not asked for, 1 optional, 2 required."""
    ssl_ciphers: str | None = None
    """Ciphers of TLS 1.2, in OpenSSL's notation."""
    enable_ssl_refresh: bool = False
    """Read the certificate again when its files change."""
    root_path: str = ""
    """Prefix under which a proxy serves this server."""
    allowed_origins: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = (
        None
    )
    """Web pages that browsers may let call this server (CORS), or '["*"]'; default: none."""
    allowed_methods: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = (
        None
    )
    """Methods that these pages may use; default: GET and POST."""
    allowed_headers: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = (
        None
    )
    """Headers that these pages may send; default: all."""
    allow_credentials: bool = False
    """Let browsers send cookies and certificates along; not together with all origins."""
    response_role: str = "assistant"
    """The role in chat answers."""
    reasoning_parser: Literal["glm45"] | None = None
    """glm45: thinking goes to `reasoning`, apart from `content`."""
    enable_reasoning_content: bool = True
    """Show the thinking under its older name `reasoning_content` as well."""
    box_tokens: Literal["keep", "strip", "structured"] = "keep"
    """What becomes of <|begin_of_box|> and <|end_of_box|> in answers: text, nothing, or nothing and
    a list `boxes` in the message."""
    tool_call_parser: Literal["glm45", "glm47"] | None = None
    """How the model writes tool calls: glm45 with line breaks, glm47 without; both are read by
    the same rules."""
    enable_auto_tool_choice: bool = False
    """Let the model choose whether to call tools (`tool_choice: auto`)."""
    exclude_tools_when_tool_choice_none: bool = False
    """Leave tools out of the prompt of requests with `tool_choice: none`."""
    tool_strict_level: Literal["auto", "function", "parameter"] = "function"
    """What calls that the model chooses to make are held to: auto: the schemas of `strict`
    functions; function: also names of all functions and arguments; parameter: all schemas."""
    max_logprobs: int = 20
    """Most alternatives a request may ask for with top_logprobs."""
    max_num_queued_reqs: int = 1024
    """Requests that may wait; more get 429 with Retry-After."""
    enable_prompt_tokens_details: bool = True
    """usage.prompt_tokens_details.cached_tokens in answers."""
    enable_force_include_usage: bool = False
    """Usage in every stream, asked for or not."""
    enable_request_id_headers: bool = True
    """Answers have X-Request-Id: the client's, else the server's own."""
    trust_request_chat_template: bool = False
    """Let requests bring a `chat_template`. One that loops holds up the server: trusted clients
    only."""
    strict_fields: bool = False
    """Refuse requests with fields nobody knows; default: name them in a header and the log."""
    first_token_timeout: float = 600.0
    """Seconds that a request may wait for its first token before it ends with 504; 0: for ever."""
    shutdown_timeout: float = 300.0
    """Seconds that SIGTERM lets running requests take before they are ended."""
    otlp_traces_endpoint: str | None = None
    """Collector of OpenTelemetry traces, as OTLP over HTTP: http://host:4318/v1/traces."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is printed."""
    log_json: bool = False
    """One JSON object per log line."""
    enable_log_requests: bool = False
    """Log each request's parameters (never its text) when it starts."""
    disable_uvicorn_access_log: bool = False
    """No line per finished request; those that fail with 5xx keep theirs."""
    disable_access_log_for_endpoints: str | None = None
    """Paths without such lines, separated by commas; probes and /metrics never have one."""
    disable_log_requests: bool = True
    """Accepted; the default."""
    disable_log_stats: bool = False
    """No line with the engine's state every ten seconds."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All wishes of one `glimt serve`."""

    model: str
    models: ModelSettings = ModelSettings()
    cache: CacheSettings = CacheSettings()
    media: MediaSettings = MediaSettings()
    parallel: ParallelSettings = ParallelSettings()
    server: ServerSettings = ServerSettings()


def parse_count(text: str) -> int:
    """A number with a unit: 8k = 8,000, 8K = 8,192, likewise m/M and g/G; 25.6k is fine.

    Raises ValueError if it is not a whole number above 0.
    """
    units = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
    number, unit = (text[:-1], units[text[-1]]) if text and text[-1] in units else (text, 1)
    try:
        count = float(number) * unit
    except ValueError:
        raise ValueError(f"{text!r} is not a number such as 65536, 64k or 64K") from None
    if not math.isfinite(count) or count < 1 or count != int(count):
        raise ValueError(f"{text!r} is not a whole number above 0")
    return int(count)


def parse_object(text: str | None) -> dict[str, Any]:
    """A JSON object given as a flag; None gives {}. Raises ValueError."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object, such as '{\"key\": 1}'")
    return value


_PROFILER_SWITCHES = {
    "torch_profiler_with_stack": True,
    "torch_profiler_with_flops": False,
    "torch_profiler_record_shapes": False,
    "torch_profiler_with_memory": False,
    "torch_profiler_use_gzip": True,
}


def parse_profiler(text: str | None) -> dict[str, Any]:
    """The object of --profiler-config with its defaults; None gives {}. Raises ValueError."""
    if text is None:
        return {}
    wishes = {"profiler": "torch", **_PROFILER_SWITCHES, **parse_object(text)}
    known = {"profiler", "torch_profiler_dir", *_PROFILER_SWITCHES}
    if unknown := sorted(wishes.keys() - known):
        raise ValueError(f"{', '.join(unknown)}: not known; {', '.join(sorted(known))} are")
    if wishes["profiler"] != "torch":
        raise ValueError("profiler must be torch")
    folder = wishes.get("torch_profiler_dir")
    if not isinstance(folder, str) or not folder.startswith("/"):
        raise ValueError("torch_profiler_dir must be the absolute path of a folder")
    for name in _PROFILER_SWITCHES:
        if not isinstance(wishes[name], bool):
            raise ValueError(f"{name} must be true or false")
    return wishes


def names_in(given: list[str] | None) -> tuple[str, ...]:
    """A list as a flag has it: one value after the other, or, as vLLM writes it, one JSON list."""
    if given is not None and len(given) == 1 and given[0].startswith("["):
        try:
            names = json.loads(given[0])
        except json.JSONDecodeError:
            return tuple(given)
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    return tuple(given or ())
