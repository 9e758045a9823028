"""The wishes of the user: every option of `glimt bench serve`, as frozen dataclasses.

Names, meanings and defaults are those of `vllm bench serve` wherever it has the option, so that its
command lines run unchanged; the groups below say which are ours alone. What can be judged without a
server is judged in `settings.py`.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Group, Parameter

Many = Parameter(consume_multiple=True, negative="")
Backend = Literal["openai", "vllm", "openai-chat", "openai-responses"]
DatasetName = Literal[
    "random",
    "random-mm",
    "sharegpt",
    "hf",
    "custom",
    "custom_image",
    "custom_mm",
    "prefix_repetition",
    "burstgpt",
    "timed_trace",
    "visionarena-like",
]


def flags_of(options: type) -> Parameter:
    """The fields of a class of options as flags, under a heading of their own in `--help`: the
    first sentence of the class."""
    heading = (options.__doc__ or "").partition(".")[0]
    return Parameter(name="*", group=Group.create_ordered(heading))


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """Which server is asked, and how."""

    backend: Backend = "openai"
    """The API: completions (openai, vllm), openai-chat or openai-responses."""
    base_url: str | None = None
    """Server, e.g. http://10.0.0.7:8000; in place of --host and --port."""
    host: str = "127.0.0.1"
    """The server's host."""
    port: int = 8000
    """The server's port."""
    endpoint: str = "/v1/completions"
    """Path of the API; must fit the backend."""
    model: str | None = None
    """Model name or folder; default: the first that the server lists."""
    served_model_name: str | None = None
    """Name to send to the server where it differs from --model."""
    tokenizer: str | None = None
    """Folder, tokenizer.json or hub name; default: --model."""
    tokenizer_mode: str = "auto"
    """auto or hf; other modes are refused."""
    skip_tokenizer_init: bool = False
    """Work without a tokenizer; lengths of texts are then estimates."""
    trust_remote_code: bool = False
    """Accepted; no code from a model or dataset is ever run."""
    header: Annotated[list[str] | None, Many] = None
    """Headers for every request, KEY=VALUE."""
    insecure: bool = False
    """Do not check the server's TLS certificate."""
    request_id_prefix: str | None = None
    """Start of the X-Request-Id of each request; default: bench-<8 hex digits>-."""
    ready_check_timeout_sec: int = 0
    """Seconds to wait until the server answers a first request; 0: do not check."""
    request_timeout: float = 21600.0
    """Seconds after which a request counts as failed."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How many requests, and when."""

    num_prompts: int = 1000
    """Requests to send (with --duration: distinct prompts to cycle through)."""
    request_rate: float = math.inf
    """Requests per second; inf sends all at once."""
    burstiness: float = 1.0
    """Shape of the gamma-distributed gaps: 1 is Poisson, below burstier, inf constant."""
    max_concurrency: int | None = None
    """Most requests in flight; the others wait in the client, which is measured."""
    ramp_up_strategy: Literal["linear", "exponential"] | None = None
    """Let the rate grow over the requests; excludes --request-rate."""
    ramp_up_start_rps: int | None = None
    """Rate at the first request."""
    ramp_up_end_rps: int | None = None
    """Rate at the last request."""
    num_warmups: Annotated[int, Parameter(alias="--warmup-requests")] = 0
    """Requests before the run that are not measured; other prompts than the run's. Also
    --warmup-requests."""
    warmup_overlap: bool = False
    """Send warm-ups at the run's own pace and go over into it without a pause."""
    duration: float | None = None
    """Send for this many seconds, going round the prompts as often as needed."""
    repeats: int = 1
    """Repeat the run and give confidence intervals; each repeat has its own seed."""
    workers: int = 1
    """Client processes that share the load. One is enough for some ten thousand events a second."""
    probe_request_rate: float = 0.0
    """Also send one-token text requests at this rate, on connections of their own."""
    seed: int = 0
    """Of prompts and arrival times."""
    self_timed: Annotated[bool | None, Parameter(negative="--no-self-timed")] = None
    """timed_trace: take arrival times from the trace. Default: on."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is asked."""

    dataset_name: DatasetName = "random"
    """Kind of prompts."""
    dataset_path: str | None = None
    """File, folder or hub repository of the dataset."""
    input_len: int | None = None
    """random, random-mm: prompt length in tokens; goes before --random-input-len."""
    output_len: int | None = None
    """Longest answer in tokens, for every dataset."""
    no_oversample: bool = False
    """Send fewer requests, rather than repeat rows, if the dataset is too small."""
    disable_shuffle: bool = False
    """Take the rows in their order."""
    no_stream: bool = False
    """hf: shuffle the whole dataset, not a window of 1000 rows."""
    enable_multimodal_chat: bool = False
    """Accepted; images are always sent as parts of a chat message."""
    skip_chat_template: bool = False
    """Accepted; prompts are never put into a template by the client."""
    random_input_len: int = 1024
    """random: tokens of each prompt, without the prefix."""
    random_output_len: int = 128
    """random: tokens of each answer."""
    random_range_ratio: str = "0.0"
    """random: lengths vary uniformly by this fraction; or {"input": 0.2, "output": 0.5}."""
    random_prefix_len: int = 0
    """random: tokens of a prefix that all prompts share."""
    random_batch_size: int = 1
    """random: refused unless 1; batches are for embeddings."""
    random_mm_base_items_per_request: int = 1
    """random-mm: images in each request."""
    random_mm_num_mm_items_range_ratio: float = 0.0
    """random-mm: the number of images varies by this fraction."""
    random_mm_limit_mm_per_prompt: str = '{"image": 255, "video": 1}'
    """random-mm: most images in a request."""
    random_mm_bucket_config: str = "{(256, 256, 1): 0.5, (720, 1280, 1): 0.5, (720, 1280, 16): 0.0}"
    """random-mm: (height, width, frames) of images and their probabilities."""
    sharegpt_output_len: int | None = None
    """sharegpt: answer length; default: that of the reference answer."""
    hf_subset: str | None = None
    """hf: subset of the dataset."""
    hf_split: str | None = None
    """hf: split of the dataset; default: train."""
    hf_name: str | None = None
    """hf: name on the hub, where --dataset-path is a folder."""
    hf_output_len: int | None = None
    """hf: longest answer in tokens; default: 128."""
    custom_output_len: int = 256
    """custom: longest answer in tokens; -1: `output_tokens` of each line."""
    custom_ensure_client_side_data: bool = False
    """custom_image, sharegpt: send the contents of images, read or fetched, not their addresses."""
    prefix_repetition_prefix_len: int = 256
    """prefix_repetition: tokens of each prefix."""
    prefix_repetition_suffix_len: int = 256
    """prefix_repetition: tokens after the prefix."""
    prefix_repetition_num_prefixes: int = 10
    """prefix_repetition: number of prefixes."""
    prefix_repetition_output_len: int = 128
    """prefix_repetition: tokens of each answer."""
    timed_trace_chunk_hash_size: int = 16
    """timed_trace: tokens that one hash stands for (Mooncake: 512)."""
    timed_trace_sec_multiplier: float = 1.0
    """timed_trace: seconds per unit of the timestamps (Mooncake: 0.001)."""
    timed_trace_label_timestamp: str = "timestamp"
    """timed_trace: name of the field with the time."""
    timed_trace_label_input_length: str = "input_length"
    """timed_trace: name of the field with the prompt's tokens."""
    timed_trace_label_output_length: str = "output_length"
    """timed_trace: name of the field with the answer's tokens."""
    timed_trace_label_hash_ids: str = "hash_ids"
    """timed_trace: name of the field with the hashes of the prompt's blocks."""
    turns: Annotated[int, Parameter(alias="--multi-turn")] = 1
    """Turns of each conversation; answers become part of the next turn's prompt. Also
    --multi-turn."""
    think_time: float = 0.0
    """Mean seconds between an answer and the next turn, exponentially distributed."""
    image_source: str = "synth"
    """visionarena-like: synth (made up), or a folder of pictures to show in place of these."""
    image_format: Literal["jpeg", "png", "mixed"] = "jpeg"
    """visionarena-like: format of the images."""
    image_dup_ratio: float = 0.0
    """visionarena-like, random-mm: fraction of requests that show an image seen before."""
    cache_bust: bool = False
    """Make every prompt and image unique, in each run anew, so that no cache of the server hits."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Fields of every request."""

    temperature: float | None = None
    """Left to the server if not given."""
    top_p: float | None = None
    """Left to the server if not given."""
    top_k: int | None = None
    """Left to the server if not given."""
    min_p: float | None = None
    """Left to the server if not given."""
    frequency_penalty: float | None = None
    """Left to the server if not given."""
    presence_penalty: float | None = None
    """Left to the server if not given."""
    repetition_penalty: float | None = None
    """Left to the server if not given."""
    ignore_eos: bool = False
    """Answers run to their full length; on for random and random-mm."""
    logprobs: int | None = None
    """Ask for log-probabilities of this many tokens."""
    use_beam_search: bool = False
    """Refused: no server here does beam search."""
    extra_body: str | None = None
    """JSON merged into every request; or member by member: --extra-body.top_k 5."""
    chat_template_kwargs: str | None = None
    """JSON sent as chat_template_kwargs with every chat request."""
    lora_modules: Annotated[list[str] | None, Many] = None
    """Model names to choose from for each request."""
    lora_assignment: Literal["random", "round-robin"] = "random"
    """How --lora-modules are dealt."""


@dataclass(frozen=True, kw_only=True)
class FigureOptions:
    """What is computed of the run."""

    percentile_metrics: str = "ttft,tpot,itl"
    """Blocks of the table: ttft, tpot, itl, e2el, client_queue_time, e2el_including_client_queue,
    e2el_per_token, ttfo, ttst, chunk_gap, ttft_from_intended, e2el_from_intended, connect, upload,
    headers; or all."""
    metric_percentiles: str = "99"
    """Percentiles, e.g. 50,90,99,99.9."""
    goodput: Annotated[list[str] | None, Many] = None
    """Service-level objectives: ttft:200 tpot:50 e2el:10000 (ms), all to be met by a good request.
    Statements on the run are possible too: p99_ttft:2000."""
    slo_preset: str | None = None
    """Objectives by name: chat, reading, mlperf-vlm-server, and more: a wrong name lists all."""
    steady_window: str = "auto"
    """Which part of the run counts as steady: auto (from the first to the last moment with 80 % of
    the median concurrency), another fraction, or off."""
    input_tokens: Literal["usage", "text", "both"] = "usage"
    """What "Total input tokens" counts: usage, the server's count, images included; text, the texts
    alone by the client's tokenizer, as vLLM's client up to 0.19 did; both, usage with a row for
    text."""
    vllm_compat: bool = False
    """Definitions and spelling of vLLM up to 0.12: gaps per chunk, peaks by second, "Token"."""


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """What is watched during the run."""

    server_metrics: bool = False
    """Read the server's /metrics each second during the run."""
    gpu: bool = False
    """Read power and use of the local NVIDIA GPUs (of those in CUDA_VISIBLE_DEVICES, if it is set);
    gives joules per token."""
    profile: bool = False
    """POST /start_profile before and /stop_profile after the run."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written."""

    save_result: bool = False
    """Write the result as JSON."""
    save_detailed: bool = False
    """With every request's times, lengths, errors and text in it."""
    append_result: bool = False
    """Append to the file, one JSON object per line."""
    result_dir: str | None = None
    """Folder of the result; default: here."""
    result_filename: str | None = None
    """Name of the result; default: {label}-{rate}qps-{model}-{date}.json."""
    label: str | None = None
    """Start of the default file name; default: the backend."""
    metadata: Annotated[list[str] | None, Many] = None
    """KEY=VALUE pairs for the result."""
    raw: str | None = None
    """Write the event log (JSON lines), from which `glimt bench report` makes everything again."""
    html: str | None = None
    """Write the report, one file without network."""
    csv: str | None = None
    """Write one line per request."""
    markdown: str | None = None
    """Write the figures as Markdown."""
    compare: Annotated[list[str] | None, Many] = None
    """BEFORE: say what this run changed; BEFORE AFTER: compare these two without a run. Files of
    --raw or --save-detailed."""
    plot_timeline: bool = False
    """Write the report beside the result (it has the timeline)."""
    timeline_itl_thresholds: str = "25,50"
    """Gaps between chunks (ms) from which the waterfall of the report is yellow, and red."""
    plot_dataset_stats: bool = False
    """Write the report beside the result (it has the lengths)."""
    disable_tqdm: bool = False
    """No live progress."""

    @property
    def keeps_texts(self) -> bool:
        """Whether answers' texts are wanted."""
        return self.save_detailed or self.raw is not None


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Several runs in one command."""

    sweep: Annotated[list[str] | None, Many] = None
    """Runs at each value: rate=1,2,4,8 or concurrency=1,8,64."""
    find_max_rate: bool = False
    """Search for the highest rate that keeps the objectives."""
    search_low: float = 0.5
    """Lowest rate of the search."""
    search_high: float = 256.0
    """Highest rate of the search."""
    search_precision: float = 0.05
    """The search ends when its bounds differ by less than this fraction."""
    search_whole_runs: bool = False
    """Run every probe of the search to its end; otherwise it stops when its verdict is clear."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """All options of one `glimt bench serve`."""

    target: TargetOptions = TargetOptions()
    load: LoadOptions = LoadOptions()
    data: DataOptions = DataOptions()
    sampling: SamplingOptions = SamplingOptions()
    watch: WatchOptions = WatchOptions()
    figures: FigureOptions = FigureOptions()
    output: OutputOptions = OutputOptions()
    search: SearchOptions = SearchOptions()


@dataclass(frozen=True, kw_only=True)
class CeilingOptions:
    """How hard to try."""

    requests: int = 10_000
    """Requests with answers of one token."""
    streams: int = 64
    """Requests in flight."""
    tokens: int = 4_000
    """Chunks of each long answer."""
    repeats: int = 3
    """Times to repeat; the best counts, since other work on the machine can only slow it down."""
    workers: int = 1
    """Client processes."""
