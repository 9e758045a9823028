"""Judges options before anything is done: all problems at once, each with its cure."""

import json
import math
from collections.abc import Iterator

from glimt.bench.data.buckets import image_buckets
from glimt.bench.data.lengths import Spread
from glimt.bench.data.matching import refused, without_effect
from glimt.bench.events import RunStart
from glimt.bench.figures.objectives import parse_objectives
from glimt.bench.figures.question import METRICS, Question
from glimt.bench.load.schedule import Arrivals
from glimt.bench.options import Options
from glimt.bench.search import Sweep
from glimt.errors import BadSettings

_IGNORE_EOS = {"random", "random-mm", "timed_trace"}


def check(options: Options) -> list[str]:
    """Notes for the user. Raises BadSettings with all problems."""
    problems = [*_target(options), *_load(options), *_data(options), *_wishes(options)]
    if problems:
        raise BadSettings("these options cannot be used:", problems)
    return list(_notes(options))


def check_report(options: Options, raw: str | None) -> None:
    """For `glimt bench report`. Raises BadSettings."""
    files = options.output.compare or []
    if len(files) > 2 or (raw is None) != (len(files) == 2):
        raise BadSettings(
            "give the log of a run (glimt bench report RAW, with --compare BEFORE if you like), or "
            "two to be compared: glimt bench report --compare BEFORE AFTER"
        )
    gap_limits(options.output.timeline_itl_thresholds)
    question(options)


def arrivals(options: Options) -> Arrivals:
    """How arrival times are drawn."""
    load = options.load
    return Arrivals(
        rate=load.request_rate,
        burstiness=load.burstiness,
        ramp=load.ramp_up_strategy,
        ramp_start=load.ramp_up_start_rps or 0,
        ramp_end=load.ramp_up_end_rps or 0,
    )


def ignores_eos(options: Options) -> bool:
    """Whether answers run to their full length."""
    return options.sampling.ignore_eos or options.data.dataset_name in _IGNORE_EOS


def question(options: Options) -> Question:
    """How the log is to be evaluated. Raises BadSettings."""
    figures = options.figures
    return Question(
        percentiles=percentiles(figures.metric_percentiles),
        objectives=parse_objectives(figures.goodput or (), figures.slo_preset),
        steady_ratio=steady_ratio(figures.steady_window),
        vllm_compat=figures.vllm_compat,
        counts_texts=figures.input_tokens == "text",
    )


def percentiles(text: str) -> tuple[float, ...]:
    """From `50,90,99.9`. Raises BadSettings."""
    try:
        values = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = (-1.0,)
    if not values or not all(0 <= value <= 100 for value in values):
        raise BadSettings(f"--metric-percentiles {text}: must be numbers from 0 to 100")
    return values


def metrics(text: str) -> tuple[str, ...]:
    """From `ttft,tpot` or `all`. Raises BadSettings."""
    if text == "all":
        return METRICS
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if unknown := [name for name in names if name not in METRICS]:
        raise BadSettings(
            f"--percentile-metrics: {', '.join(unknown)} is not one of {', '.join(METRICS)}"
        )
    return names


def steady_ratio(text: str) -> float | None:
    """From auto, off, or a fraction. Raises BadSettings."""
    if text in ("auto", "off"):
        return 0.8 if text == "auto" else None
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio <= 1:
        raise BadSettings(f"--steady-window {text}: must be auto, off, or above 0 and at most 1")
    return ratio


def gap_limits(text: str) -> tuple[float, float]:
    """From `25,50` (ms). Raises BadSettings."""
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        first, second = 0.0, 0.0
    if not 0 < first <= second:
        raise BadSettings(f"--timeline-itl-thresholds {text}: must be two gaps in ms, e.g. 25,50")
    return first, second


def run_start(options: Options, date: str, model: str, tokenizer: str | None) -> RunStart:
    """The head of the event log, as far as options decide it."""
    load, rate = options.load, options.load.request_rate
    ramp = None
    if load.ramp_up_strategy is not None:
        first, last = load.ramp_up_start_rps or 0, load.ramp_up_end_rps or 0
        ramp = (load.ramp_up_strategy, first, last)
    return RunStart(
        date=date,
        backend=options.target.backend,
        model=model,
        tokenizer=tokenizer,
        num_prompts=load.num_prompts,
        request_rate=None if math.isinf(rate) else rate,
        burstiness=load.burstiness if math.isfinite(load.burstiness) else 1e9,
        max_concurrency=load.max_concurrency,
        ramp_up=ramp,
        ignore_eos=ignores_eos(options),
        vllm_compat=options.figures.vllm_compat,
    )


def _target(options: Options) -> Iterator[str]:
    target = options.target
    if target.tokenizer_mode not in ("auto", "hf"):
        yield f"--tokenizer-mode {target.tokenizer_mode}: only tokenizer.json is read; leave it out"
    if not 0 < target.port < 65536:
        yield f"--port {target.port}: must be 1 to 65535"
    if target.request_timeout <= 0 or target.ready_check_timeout_sec < 0:
        yield "--request-timeout must be above 0, --ready-check-timeout-sec at least 0"


def _load(options: Options) -> Iterator[str]:
    load = options.load
    for flag, value in (
        ("--num-prompts", load.num_prompts),
        ("--max-concurrency", load.max_concurrency),
        ("--repeats", load.repeats),
        ("--workers", load.workers),
    ):
        if value is not None and value < 1:
            yield f"{flag} {value}: must be at least 1"
    if not load.request_rate > 0:
        yield f"--request-rate {load.request_rate:g}: must be above 0 (inf: all at once)"
    if not load.burstiness > 0:
        yield f"--burstiness {load.burstiness:g}: must be above 0"
    if load.num_warmups < 0 or load.probe_request_rate < 0:
        yield "--num-warmups and --probe-request-rate must be at least 0"
    yield from _ramp(options)
    if load.duration is not None:
        if load.duration <= 0:
            yield f"--duration {load.duration:g}: must be above 0"
        if math.isinf(load.request_rate) and load.max_concurrency is None:
            yield "--duration needs --request-rate or --max-concurrency to pace it"
        if load.ramp_up_strategy is not None:
            yield "--duration does not go with a ramp, which grows over the number of requests"
    if load.self_timed is not None and options.data.dataset_name != "timed_trace":
        yield "--self-timed and --no-self-timed are for --dataset-name timed_trace"
    if load.seed < 0:
        yield f"--seed {load.seed}: must be at least 0"


def _ramp(options: Options) -> Iterator[str]:
    load = options.load
    first, last = load.ramp_up_start_rps, load.ramp_up_end_rps
    if load.ramp_up_strategy is None:
        if first is not None or last is not None:
            yield "--ramp-up-start-rps and --ramp-up-end-rps need --ramp-up-strategy"
        return
    if math.isfinite(load.request_rate):
        yield "--request-rate does not go with --ramp-up-strategy, which sets the rate"
    if first is None or last is None:
        yield "--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps"
    elif not 0 < first <= last:
        yield "--ramp-up-start-rps must be above 0 and at most --ramp-up-end-rps"


def _data(options: Options) -> Iterator[str]:
    data = options.data
    checks = (
        lambda: Spread.parse(data.random_range_ratio),
        lambda: image_buckets(data.random_mm_bucket_config),
    )
    for check_one in checks:
        try:
            check_one()
        except BadSettings as error:
            yield error.message
    for flag, value in (("--input-len", data.input_len), ("--output-len", data.output_len)):
        if value is not None and value < 1:
            yield f"{flag} {value}: must be at least 1"
    if not 0 <= data.image_dup_ratio < 1:
        yield "--image-dup-ratio must be at least 0 and below 1"
    if options.sampling.use_beam_search:
        yield "--use-beam-search: the APIs measured here have none; leave it out"
    yield from refused(data)
    if data.turns > 1 and options.target.backend in ("openai", "vllm"):
        yield "--turns: /v1/completions has no conversations; use --backend openai-chat"


def _search(options: Options) -> Iterator[str]:
    search, load = options.search, options.load
    if search.sweep is not None:
        try:
            Sweep.parse(search.sweep)
        except BadSettings as error:
            yield error.message
    if search.sweep is not None and search.find_max_rate:
        yield "--sweep and --find-max-rate are two searches: give one of them"
    if search.find_max_rate:
        if not question(options).objectives:
            yield "--find-max-rate needs objectives: --goodput or --slo-preset"
        if not 0 < search.search_low < search.search_high < math.inf:
            yield "--search-low must be above 0 and below --search-high"
        if not 0 < search.search_precision < 1:
            yield "--search-precision must be above 0 and below 1"
    if (search.sweep or search.find_max_rate) and options.output.compare is not None:
        yield "--compare is for equal loads: it does not go with --sweep or --find-max-rate"
    if (search.sweep or search.find_max_rate) and load.ramp_up_strategy is not None:
        yield "--ramp-up-strategy does not go with a search, which sets the rate"


def _wishes(options: Options) -> Iterator[str]:
    try:
        question(options)
        metrics(options.figures.percentile_metrics)
        gap_limits(options.output.timeline_itl_thresholds)
    except BadSettings as error:
        yield error.message
        return
    yield from _search(options)
    if options.output.compare is not None and len(options.output.compare) > 2:
        yield f"--compare {' '.join(options.output.compare)}: must be BEFORE, or BEFORE AFTER"
    for text in options.output.metadata or ():
        if "=" not in text:
            yield f"--metadata {text}: must be KEY=VALUE"
    for flag, json_text in (
        ("--extra-body", options.sampling.extra_body),
        ("--chat-template-kwargs", options.sampling.chat_template_kwargs),
    ):
        try:
            if json_text is not None and not isinstance(json.loads(json_text), dict):
                yield f"{flag}: must be a JSON object"
        except ValueError as error:
            yield f"{flag}: not JSON ({error})"


def _notes(options: Options) -> Iterator[str]:
    yield from without_effect(options.data)
    if options.sampling.temperature is None and not options.figures.vllm_compat:
        yield "temperature is left to the server; --temperature 0 makes answers comparable"
    search = options.search
    if (search.sweep or search.find_max_rate) and not options.data.cache_bust:
        yield (
            "all runs send the same prompts, which the server's caches know from the second on; "
            "with --cache-bust they are new in each"
        )
    if options.output.plot_timeline or options.output.plot_dataset_stats:
        yield "the plots of --plot-timeline and --plot-dataset-stats are part of the HTML report"
    if options.target.trust_remote_code:
        yield "--trust-remote-code has no effect: no code from a dataset or model is ever run"
