"""`make_plan`: estimates every layout of a model on a cluster, and says which to take and why."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from glimt.errors import NotEnoughMemory
from glimt.models.config import ModelConfig
from glimt.planning.constants import Constants, Gpu, Measured
from glimt.planning.fit import Fit, Room, fit
from glimt.planning.layout import Cluster, Layout, layouts
from glimt.planning.load import (
    Under,
    Workload,
    alone_tpot_s,
    alone_ttft_s,
    carries,
    ends_by_prompts,
    highest_rate,
    under,
)
from glimt.planning.speed import Speed

_MOST_NODES = 64  # looked at when a rate is more than the cluster carries
_NEAR_ITS_END = 0.85  # share of the highest rate


@dataclass(frozen=True)
class Question:
    """What is planned: a model in a format, on a cluster, for a workload. `rate`: requests/s."""

    config: ModelConfig
    gpu: Gpu
    cluster: Cluster
    work: Workload
    room: Room
    rate: float | None
    fp8: bool
    fp8_kv: bool
    constants: Constants


@dataclass(frozen=True)
class Estimate:
    """One layout. Times in seconds; floors are the device's limits. `full`: under the highest
    rate that it carries; `loaded`: under the rate that was asked for."""

    layout: Layout
    fit: Fit
    ttft_s: float
    tpot_s: float
    floor_ttft_s: float
    floor_tpot_s: float
    highest_rate: float
    full: Under | None
    loaded: Under | None

    def answer_s(self, output_tokens: int) -> float:
        """A whole answer: under the rate that was asked for, or alone; endless if not carried."""
        if self.loaded is None:
            return self.answer_s_alone(output_tokens)
        if not self.loaded.carried:
            return math.inf
        return self.loaded.ttft_s + (output_tokens - 1) * self.loaded.tpot_s

    def answer_s_alone(self, output_tokens: int) -> float:
        """A whole answer when nothing else runs."""
        return self.ttft_s + (output_tokens - 1) * self.tpot_s


@dataclass(frozen=True)
class Plan:
    """All estimates, the best first; `reasons` in sentences. `nodes_needed`: if no layout carries
    the rate, the fewest machines of this kind of which one would (0: not even 64)."""

    question: Question
    estimates: tuple[Estimate, ...]
    best: Estimate
    reasons: tuple[str, ...]
    nodes_needed: int | None
    measured: tuple[Measured, ...]


def named(question: Question, layout: Layout) -> str:
    """Its name, and how many GPUs it leaves over."""
    idle = question.cluster.num_gpus - layout.num_gpus
    return f"{layout.name} ({idle} idle)" if idle else layout.name


def make_plan(question: Question, model: str) -> Plan:
    """Raises NotEnoughMemory, with what would help, if no layout holds one request."""
    estimates = tuple(estimate(question, layout) for layout in _layouts(question))
    fitting = [e for e in estimates if e.fit.fits]
    if not fitting:
        raise NotEnoughMemory(_nothing_fits(question, estimates))
    ranked = sorted(estimates, key=lambda e: _rank(question, e))
    best = ranked[0]
    nodes_needed = None
    if question.rate is not None and not _carries(best):
        nodes_needed = _nodes_for(question, question.rate)
    return Plan(
        question=question,
        estimates=tuple(ranked),
        best=best,
        reasons=tuple(_reasons(question, best, fitting)),
        nodes_needed=nodes_needed,
        measured=tuple(
            m
            for m in question.constants.measured
            if m.gpu == question.gpu.name and model.rpartition("/")[2].lower() == m.model.lower()
        ),
    )


def estimate(question: Question, layout: Layout) -> Estimate:
    """Everything about one layout."""
    q, work = question, question.work
    speed = _speed(q, layout)
    floor = replace(speed, floor=True)
    fits = _fit(q, layout)
    highest = highest_rate(speed, work, fits.requests)
    return Estimate(
        layout=layout,
        fit=fits,
        ttft_s=alone_ttft_s(speed, work),
        tpot_s=alone_tpot_s(speed, work),
        floor_ttft_s=alone_ttft_s(floor, work),
        floor_tpot_s=alone_tpot_s(floor, work),
        highest_rate=highest,
        full=under(speed, work, highest, fits.requests) if highest > 0 else None,
        loaded=under(speed, work, q.rate, fits.requests) if q.rate and fits.fits else None,
    )


def step_at(question: Question, measured: Measured, batch: int) -> float:
    """What is expected of a step that was measured, in seconds."""
    speed = _speed(question, Layout(tp=measured.tensor_parallel_size))
    return speed.step_s(batch, measured.context)


def first_token_at(question: Question, measured: Measured) -> float:
    """What is expected of the first token that was measured, in seconds on the device."""
    speed = _speed(question, Layout(tp=measured.tensor_parallel_size))
    image, tokens, _ = measured.first_token
    return speed.image_s(image) + speed.prompt_s(tokens, question.work.chunk)


def _speed(q: Question, layout: Layout) -> Speed:
    return Speed(q.config, layout, q.gpu, q.constants, q.fp8, q.fp8_kv)


def _fit(q: Question, layout: Layout) -> Fit:
    return fit(
        q.config,
        layout,
        q.gpu,
        q.constants.engine,
        q.room,
        fp8=q.fp8,
        fp8_kv=q.fp8_kv,
        request_tokens=q.work.request_tokens,
        step_tokens=q.work.chunk,
    )


def _layouts(question: Question) -> Iterator[Layout]:
    """All; where the tower can be split or lie whole, the way that answers sooner."""
    for layout in layouts(question.config, question.cluster):
        whole = replace(layout, vision_data=True)
        images = question.work.num_images
        split_s, whole_s = (
            _speed(question, each).image_s(question.work.image_tokens, images)
            for each in (layout, whole)
        )
        yield whole if layout.tp > 1 and images and whole_s < split_s else layout


def _carries(e: Estimate) -> bool:
    return e.loaded is not None and e.loaded.carried


def _rank(question: Question, e: Estimate) -> tuple[bool, bool, float, float]:
    """Those that fit first; then those that carry the rate; then the soonest answer, or, where
    the rate is too much for all, the highest rate."""
    if question.rate is not None and not _carries(e):
        highest = float(f"{e.highest_rate:.2g}")  # what differs less is no difference
        return not e.fit.fits, True, -highest, e.answer_s_alone(question.work.output_tokens)
    return not e.fit.fits, False, e.answer_s(question.work.output_tokens), -e.highest_rate


def _reasons(question: Question, best: Estimate, fitting: Sequence[Estimate]) -> Iterator[str]:
    output, name = question.work.output_tokens, partial(named, question)
    if question.rate is None:
        yield (
            f"{name(best.layout)} answers a single request soonest: "
            f"{1e3 * best.answer_s(output):.0f} ms for {output} tokens"
        )
        most = max(fitting, key=lambda e: e.highest_rate)
        if most.layout != best.layout and most.highest_rate > 1.05 * best.highest_rate > 0:
            yield (
                f"{name(most.layout)} carries most: {most.highest_rate:,.1f} requests/s, "
                f"{most.highest_rate / best.highest_rate:.2f} times as many; "
                "give --rate to choose by your load"
            )
    elif _carries(best):
        others = [e for e in fitting if _carries(e) and e is not best]
        yield (
            f"{name(best.layout)} carries {question.rate:g} requests/s and answers soonest: "
            f"{1e3 * best.answer_s(output):.0f} ms for {output} tokens"
        )
        if others:
            second = min(others, key=lambda e: e.answer_s(output))
            yield f"next is {name(second.layout)}: {1e3 * second.answer_s(output):.0f} ms"
        if question.rate > _NEAR_ITS_END * best.highest_rate:
            yield (
                f"that is {100 * question.rate / best.highest_rate:.0f} % of the most that it "
                "carries: little more, and queues grow without end"
            )
            yield _end_of(question, best)
    else:
        yield (
            f"no layout carries {question.rate:g} requests/s; {name(best.layout)} carries most, "
            f"{best.highest_rate:,.1f}"
        )
        yield _end_of(question, best)
    if best.fit.longest < question.config.text.max_position_embeddings:
        yield f"requests can have {best.fit.longest:,} tokens at most: more do not fit"


def _end_of(question: Question, best: Estimate) -> str:
    """What keeps a layout from carrying more."""
    speed, requests = _speed(question, best.layout), best.fit.requests
    if ends_by_prompts(speed, question.work, best.highest_rate):
        return "what ends it: prompts and images take the time"
    if requests < question.room.max_num_seqs:
        return f"what ends it: only {requests} requests fit beside the weights of a copy"
    return (
        f"what ends it: --max-num-seqs {requests} in a copy; if answers may come more slowly, a "
        "larger one carries more"
    )


def _nodes_for(question: Question, rate: float) -> int:
    for nodes in range(question.cluster.nodes + 1, _MOST_NODES + 1):
        larger = replace(question, cluster=replace(question.cluster, nodes=nodes))
        for layout in _layouts(larger):
            running = _fit(larger, layout).requests
            if running and carries(_speed(larger, layout), larger.work, rate, running):
                return nodes
    return 0


def _gpus_for_one(question: Question) -> int:
    """How many GPUs of a usual machine hold the model and a request; 0: not even eight."""
    for gpus in (2, 4, 8):
        larger = replace(question, cluster=Cluster(gpus))
        if gpus > question.cluster.gpus_per_node and any(
            _fit(larger, layout).fits for layout in layouts(question.config, larger.cluster)
        ):
            return gpus
    return 0


def _nothing_fits(question: Question, estimates: Sequence[Estimate]) -> str:
    gpus = question.cluster.num_gpus
    nearest = min(estimates, key=lambda e: e.fit.short_bytes)
    enough = _gpus_for_one(question)
    cures = [f"{enough} GPUs" if enough else "more GPUs"]
    if not question.fp8:
        cures.append("--quantization fp8 (half the weights)")
    if not question.fp8_kv:
        cures.append("--kv-cache-dtype fp8")
    if question.room.utilization < 0.95:
        cures.append("a higher --gpu-memory-utilization")
    return (
        f"the model does not fit on {gpus} x {question.gpu.title}: even {nearest.layout.name} "
        f"needs {nearest.fit.weight_bytes / 2**30:.1f} GiB of weights on each GPU and lacks "
        f"{nearest.fit.short_bytes / 2**30:.1f} GiB for one request of "
        f"{question.work.request_tokens:,} tokens; try {', '.join(cures)}"
    )
