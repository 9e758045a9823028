"""Every message that crosses a process boundary, as typed structs; imports nothing of ours.

    server ── Submit, Abort, ResetCaches, Order ──▶ engine   (one engine = one replica)
    server ◀── Outputs ──────────────────────────── engine
    engine ── Wake ───────────────────────────────▶ engine   (of those that share experts)
    server ── MediaJob, MediaGrant ───────────────▶ media worker
    server ◀── MediaPrepared, MediaDone ─────────── media worker

Arrays travel as raw little-endian bytes. Pixels do not travel: they lie in shared memory
(`arena.py`) and messages hold a `PixelRef`. Times are seconds of CLOCK_MONOTONIC, which all
processes of a machine share.
"""

import msgspec


class ThoughtTokens(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer under a grammar tells its thoughts, which are free, from what must match."""

    begin: int  # <think>
    end: int  # </think>
    leave: tuple[int, ...] = ()  # end thoughts too, and belong to what follows: <tool_call>
    # May stand once before <think> or after </think>, as models write them; no part of the text.
    line_breaks: tuple[int, ...] = ()


class ThinkingBudget(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens an answer may think, its marks not counted, and how thoughts are closed."""

    max_tokens: int
    channel: str  # where the answer starts: reasoning · undecided
    thoughts: ThoughtTokens
    closing: tuple[int, ...]  # forced when the tokens are spent; the last of them is `thoughts.end`


class Grammar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an answer must match, and from where on."""

    text: str  # as glimt/grammar/source.py writes it; compiled by both sides
    allows_control: bool = False  # may name control tokens: only grammars of the server's own
    # Where the answer starts: content · reasoning (within its thoughts, the grammar begins after
    # them) · undecided (the model thinks first, or does not).
    channel: str = "content"
    thoughts: ThoughtTokens | None = None  # set unless channel is content
    # Tokens with which something else may begin in its place, and go on freely: calls of tools.
    instead: tuple[int, ...] = ()


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to turn logits into tokens, and when to stop. Validated by the client tower.

    `seed` is always set (drawn by the client tower where the user gave none): with it, and the
    position, a token's randomness is a pure function, whatever the batch or a preemption.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0  # 64-bit signed
    eos_token_ids: tuple[int, ...] = ()  # empty under ignore_eos
    stop_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that must not appear
    allowed_token_ids: tuple[int, ...] | None = None
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None  # None = off, 0 = the chosen token only, k = and the k most likely
    prompt_logprobs: int | None = None  # the same of each prompt token but the first
    grammar: Grammar | None = None
    thinking: ThinkingBudget | None = None


class PixelRef(msgspec.Struct, frozen=True, array_like=True):
    """Bytes [offset, offset + nbytes) of shared arena number `arena`."""

    arena: int
    offset: int
    nbytes: int


class ImageSpan(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One still image, or one temporal step of a video, and the run of prompt tokens it fills.

    The vision tower never looks across temporal steps, so a video is just several spans.
    Pixels: uint8 [grid_h * grid_w, 3, num_frames, patch, patch] in the row order of the
    processor (blocks of 2 x 2 patches); `num_frames` is 1 for a still (the engine repeats it).
    `num_tokens` = grid_h * grid_w / merge**2, at prompt positions [start, start + num_tokens).
    """

    content_hash: bytes  # 32 bytes over content and every parameter that changes the pixels
    start: int
    num_tokens: int
    grid_h: int  # in patches
    grid_w: int
    num_frames: int  # 1 or 2
    pixels: PixelRef


class Submit(msgspec.Struct, frozen=True, kw_only=True, tag="submit"):
    """Start one generation. It is answered by exactly one `Output` with a finish_reason."""

    request_id: int  # unique per server incarnation; the engine keys on (server, request_id)
    server: int
    token_ids: bytes  # int32 [L]
    positions: bytes | None = None  # int32 [3, L]; None = 0 … L-1 on all three axes (text only)
    rope_delta: int = 0  # position of generated token i (counted in the whole sequence) - i
    images: tuple[ImageSpan, ...] = ()  # ascending by start, never overlapping
    sampling: SamplingParams
    priority: int = 0  # lower first, used under --scheduling-policy priority
    cache_salt: bytes = b""  # separates prefix-cache and image-cache entries of tenants
    arrival_s: float = 0.0


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Stop a request. Unknown and finished ids are ignored."""

    server: int
    request_id: int


class ResetCaches(msgspec.Struct, frozen=True, tag="reset_caches"):
    """Forget cached prefixes and image embeddings that no running request uses."""

    prefix: bool = True
    images: bool = True


class Order(msgspec.Struct, frozen=True, kw_only=True, tag="order"):
    """Something an operator wants done between steps. Answered by one `OrderDone`."""

    server: int
    order_id: int
    kind: str  # sleep · wake · start_profile · stop_profile · expert_load
    level: int = 0  # of sleep: 1 keeps the weights in host memory, 2 drops them


EngineInbound = Submit | Abort | ResetCaches | Order  # from servers


class Wake(msgspec.Struct, frozen=True, tag="wake"):
    """From an engine to those that share experts with it: round `number` begins."""

    number: int


EngineMessage = EngineInbound | Wake


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities of one sampled token, before temperature and penalties."""

    token_id: int
    logprob: float
    rank: int  # 1 = the most likely
    top: tuple[tuple[int, float], ...]


class ErrorInfo(msgspec.Struct, frozen=True, array_like=True):
    """A failure as (code of `errors.py`, message), ready to be raised on the other side."""

    code: str
    message: str


class Output(msgspec.Struct, frozen=True, array_like=True):
    """What one step gave one request. `finish_reason` set = terminal, nothing follows."""

    request_id: int
    token_ids: tuple[int, ...]  # new tokens; a matched eos or stop token is the last of them
    finish_reason: str | None = None  # stop · length · abort · error
    stop_token_id: int | None = None  # the eos or stop token that matched
    logprobs: tuple[TokenLogprobs, ...] | None = None
    error: ErrorInfo | None = None
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache at admission
    scheduled_s: float = 0.0  # when it first ran; queue time = scheduled_s - arrival_s
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None  # with the first token only


class OrderDone(msgspec.Struct, frozen=True, array_like=True):
    """An order is carried out, or failed: `detail` is the folder or file of a profile, or an
    expert load as JSON."""

    order_id: int
    detail: str = ""
    error: ErrorInfo | None = None


class PageLife(msgspec.Struct, frozen=True, array_like=True):
    """Of a known page of KV memory that was evicted; all in seconds."""

    lifetime_s: float  # since it was taken
    idle_s: float  # since it was last found
    gaps_s: tuple[float, ...]  # between its uses


class ExpertStats(msgspec.Struct, frozen=True, array_like=True):
    """Where an engine's tokens went; a token counts once for each expert that it chose.

    Imbalances are of what came since the stats before: the most over the mean, by layer.
    """

    expert_tokens: tuple[int, ...] = ()  # by expert, over all layers
    rank_tokens: tuple[int, ...] = ()  # by the rank that computes them; empty if each has a part
    expert_imbalance: dict[int, float] = {}
    rank_imbalance: dict[int, float] = {}


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one engine after a step. Counters only grow within one incarnation."""

    step: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_pages: int = 0
    num_used_pages: int = 0  # held by requests; cached but unheld pages do not count
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    image_queries: int = 0
    image_hits: int = 0
    preemptions: int = 0
    step_tokens: int = 0  # tokens computed in the last step
    sleep_level: int = 0  # 0 awake · 1 weights in host memory, no KV cache · 2 no weights either
    is_profiling: bool = False
    estimated_flops: float = 0.0  # of one device, as are the bytes; 0 unless they are asked for
    estimated_read_bytes: float = 0.0
    estimated_written_bytes: float = 0.0
    idle_steps: int = 0  # that were taken for the tokens of other replicas only
    experts: ExpertStats | None = None  # None unless it is asked for
    page_lives: tuple[PageLife, ...] = ()  # that ended since the last stats, of watched pages


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """All outputs of one step for one server, in one message; `stats` at least once a second."""

    outputs: tuple[Output, ...]
    stats: EngineStats | None = None
    orders: tuple[OrderDone, ...] = ()
    engine: int = 0  # who sends it


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine resolved at start; the client tower validates requests against it."""

    max_model_len: int
    vocab_size: int  # rows of the logits; padding rows included
    num_pages: int
    page_size: int
    max_num_batched_tokens: int
    max_num_seqs: int
    max_image_tokens: int  # tokens of the largest span that the encoder cache can hold
    max_logprobs: int = 20
    device: str = "cpu"  # of rank 0
    tensor_parallel_size: int = 1
    dtype: str = "float32"
    kv_cache_dtype: str = "float32"
    weights_format: str = "bfloat16"
    phases_s: dict[str, float] = {}  # start-up phases


# ------------------------------------------------------------------------------------- media


class ImageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of preprocessor_config.json (images) or video_preprocessor_config.json (videos)."""

    min_pixels: int = 12_544  # "shortest_edge": a volume T * H * W, not an edge
    max_pixels: int = 9_633_792  # "longest_edge", likewise
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    # glm4v: 2 fps and whole seconds (4.1V, 4.5V) · glm46v: by duration and tenths (4.6V, Flash)
    sampler: str = "glm4v"
    fps: float = 2.0
    max_duration_s: float = 300.0
    max_frames: int = 640
    num_frames: int = 0  # so many, spread evenly, in place of the sampler's rule; 0: by the rule
    background: tuple[int, int, int] = (255, 255, 255)  # red, green, blue behind transparent pixels


class MediaLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds checked before memory is taken; a request may never raise them."""

    max_image_bytes: int = 20 * 2**20
    max_video_bytes: int = 100 * 2**20
    max_image_pixels: int = 50_000_000
    max_frame_pixels: int = 8_900_000
    max_video_frames: int = 640  # sampled
    max_video_seconds: float = 3_600.0
    decode_timeout_s: float = 30.0


class MediaJob(msgspec.Struct, frozen=True, kw_only=True, tag="media_job"):
    """Decode one image or video; the encoded bytes follow as a raw frame.

    `is_base64`: the frame is base64 text (strict alphabet) and is decoded by the worker.
    """

    job_id: int
    kind: str  # image · video
    is_base64: bool = False
    settings: ImageSettings
    limits: MediaLimits


class MediaFrame(msgspec.Struct, frozen=True, array_like=True):
    """One span's worth of pixels: offset is within the job's grant."""

    grid_h: int
    grid_w: int
    num_frames: int
    offset: int
    nbytes: int
    timestamp: str  # text after a video frame ("0", "0.4 seconds"); "" for stills


class MediaPrepared(msgspec.Struct, frozen=True, kw_only=True, tag="media_prepared"):
    """The pixels lie in the worker's own memory and wait for a place of `nbytes`."""

    job_id: int
    nbytes: int
    frames: tuple[MediaFrame, ...]
    decode_s: float
    resize_s: float


class MediaGrant(msgspec.Struct, frozen=True, tag="media_grant"):
    """Write the pixels here; None = not wanted any more, drop them."""

    job_id: int
    place: PixelRef | None


class MediaDone(msgspec.Struct, frozen=True, kw_only=True, tag="media_done"):
    """The worker is idle again. `error` set = the job failed; its code is of `errors.py`."""

    job_id: int
    error: ErrorInfo | None = None


class MediaHello(msgspec.Struct, frozen=True, tag="media_hello"):
    """First message of a media worker: idle and ready."""

    worker: int


MediaInbound = MediaJob | MediaGrant
MediaOutbound = MediaHello | MediaPrepared | MediaDone
