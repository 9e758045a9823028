"""Every figure, on hand-made logs with known answers, and against vLLM's own results."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.bench.events import HealthEvent, RequestEvent, ServerEvent
from glimt.bench.figures.concurrency import peak_rate, steady_window, sweep
from glimt.bench.figures.measured import measure
from glimt.bench.figures.objectives import parse_objectives
from glimt.bench.figures.question import Question
from glimt.bench.figures.statistics import confidence, student_quantile
from glimt.bench.figures.summary import Summary, summarise
from glimt.bench.figures.tokens import gaps_per_token, spread, token_times
from glimt.bench.report.table import Wording, table
from glimt.errors import BadSettings
from tests.support.bench_logs import MS, log_of, request

OF_VLLM = json.loads((Path(__file__).parent / "vllm_0.33_result.json").read_text())


def summary_of(*requests: RequestEvent, **question: Any) -> Summary:
    return summarise(log_of(requests), Question(**question))


def test_vllm_figures_come_out_of_vllm_arrays() -> None:
    """The arrays of a --save-detailed file of vLLM's client give the totals in the same file."""
    requests = []
    columns = ("start_times", "ttfts", "itls", "latencies", "input_lens", "output_lens")
    rows = zip(*(OF_VLLM[column] for column in columns), strict=True)
    for index, (start, ttft, itls, latency, num_in, num_out) in enumerate(rows):
        at_ms = [1e3 * (start + ttft + passed) for passed in np.cumsum([0.0, *itls])]
        assert at_ms[-1] == pytest.approx(1e3 * (start + latency), abs=1e-6)
        requests.append(
            request(
                index,
                start_ms=1e3 * start,
                at_ms=at_ms,
                prompt_tokens=num_in,
                completion_tokens=num_out,
            )
        )
    question = Question(
        percentiles=(50, 99.9),
        objectives=parse_objectives(["ttft:101", "tpot:15"], None),
        vllm_compat=True,
    )
    summary = summarise(log_of(requests, end_ms=1e3 * OF_VLLM["duration"]), question)
    assert summary.completed == OF_VLLM["completed"]
    assert summary.inputs.total_tokens == OF_VLLM["total_input_tokens"]
    assert summary.outputs.total_tokens == OF_VLLM["total_output_tokens"]
    assert summary.peak_output_throughput == OF_VLLM["max_output_tokens_per_s"]
    assert summary.peak_concurrency == OF_VLLM["max_concurrent_requests"]
    assert summary.goodput is not None
    rates = {
        "request_throughput": summary.request_throughput,
        "output_throughput": summary.output_throughput,
        "total_token_throughput": summary.total_token_throughput,
        "request_goodput": summary.goodput.requests_per_s,
    }
    for name, value in rates.items():
        assert value == pytest.approx(OF_VLLM[name], rel=1e-8), name
    for metric in ("ttft", "tpot", "itl", "e2el"):
        values = summary.metrics[metric]
        # Nanoseconds against seconds as floats: equal to five digits of a millisecond.
        assert 1e3 * values.mean == pytest.approx(OF_VLLM[f"mean_{metric}_ms"], abs=2e-5)
        assert 1e3 * values.median == pytest.approx(OF_VLLM[f"median_{metric}_ms"], abs=2e-5)
        assert 1e3 * values.std == pytest.approx(OF_VLLM[f"std_{metric}_ms"], abs=2e-5)
        for percent, name in ((50, "p50"), (99.9, "p99.9")):
            expected = OF_VLLM[f"{name}_{metric}_ms"]
            assert 1e3 * values.percentiles[percent] == pytest.approx(expected, abs=2e-5)


def test_the_figures_of_one_request_are_what_one_reads_off_its_times() -> None:
    summary = summary_of(request(start_ms=100, at_ms=[150, 160, 180, 190], prompt_tokens=30))
    assert summary.duration_s == pytest.approx(0.190)
    values = {name: values.mean for name, values in summary.metrics.items()}
    assert values["ttft"] == pytest.approx(0.050)
    assert values["tpot"] == pytest.approx(0.040 / 3)
    assert values["itl"] == pytest.approx(0.040 / 3)
    assert values["ttst"] == pytest.approx(0.060)
    assert values["e2el"] == pytest.approx(0.090)
    assert summary.output_throughput == pytest.approx(4 / 0.190)
    assert summary.total_token_throughput == pytest.approx(34 / 0.190)
    assert (summary.peak_concurrency, summary.completed, summary.failed) == (1, 1, 0)


def test_several_tokens_in_a_chunk_are_so_many_gaps() -> None:
    event = request(at_ms=[100, 140, 180], completion_tokens=12, chunk_chars=[8, 8, 8])
    measured = measure([event])
    assert measured.itl == pytest.approx([0.010] * 8)
    assert measured.chunk_gap == pytest.approx([0.040, 0.040])
    assert measured.tpot == pytest.approx([0.080 / 11])
    assert measure([event], by_chunk=True).itl == pytest.approx([0.040, 0.040])


def test_the_servers_own_count_of_a_chunk_wins_over_the_length_of_its_text() -> None:
    event = request(
        at_ms=[1, 2, 3], completion_tokens=6, chunk_chars=[1, 1, 9], chunk_tokens=[4, 1, 1]
    )
    assert token_times(event).counts.tolist() == [4, 1, 1]


def test_an_end_token_that_is_counted_and_not_sent_is_left_out() -> None:
    event = request(at_ms=[1, 2, 3], completion_tokens=4, finish_reason="stop")
    assert token_times(event).counts.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("total", "kept"), [(3, 3), (2, 2), (None, 3)])
def test_an_empty_last_chunk_is_a_token_if_the_total_says_so(total: int | None, kept: int) -> None:
    event = request(at_ms=[1, 2, 3], chunk_kinds="cce", completion_tokens=total)
    assert len(token_times(event).at_ns) == kept
    assert len(token_times(event, by_chunk=True).at_ns) == 3


def test_thinking_counts_for_the_first_token_and_not_for_the_first_visible_one() -> None:
    summary = summary_of(request(at_ms=[50, 60, 70, 80], chunk_kinds="rrcc"))
    assert summary.metrics["ttft"].mean == pytest.approx(0.050)
    assert summary.metrics["ttfo"].mean == pytest.approx(0.070)
    only_thought = summary_of(request(at_ms=[50, 60], chunk_kinds="rr"))
    assert only_thought.metrics["ttfo"].count == 0


def test_a_one_token_answer_has_no_tpot_and_meets_every_objective_of_it() -> None:
    objectives = parse_objectives(["tpot:1"], None)
    summary = summary_of(request(at_ms=[50]), objectives=objectives)
    assert summary.metrics["tpot"].count == 0
    assert summary.goodput is not None
    assert summary.goodput.fraction == 1.0


def test_nothing_and_nothing_but_failures_give_zeros() -> None:
    failed = request(at_ms=[], status=503, failure="http", error="503: full")
    for log in (log_of([]), log_of([failed], end_ms=10)):
        summary = summarise(log, Question(objectives=parse_objectives(["ttft:1"], None)))
        assert summary.completed == 0
        assert summary.metrics["ttft"].mean == 0
        assert summary.output_throughput == 0
    assert summary.failures == {"http_503": 1}
    assert summary.errors == ("503: full",)


def test_failures_count_against_goodput_and_are_told_by_class() -> None:
    requests = [request(k, at_ms=[50, 60]) for k in range(3)]
    requests.append(request(3, at_ms=[50], failure="truncated", error="cut"))
    requests.append(request(4, at_ms=[], status=None, failure="connect", error="refused"))
    summary = summary_of(*requests, objectives=parse_objectives(["ttft:50", "p80_ttft:50"], None))
    assert summary.goodput is not None
    assert summary.goodput.fraction == pytest.approx(3 / 5)
    assert summary.goodput.verdict.attainment == {"ttft": pytest.approx(3 / 5)}
    assert summary.goodput.verdict.missed == ("p80_ttft",)
    assert summary.failures == {"truncated": 1, "connect": 1}
    assert summary_of(*requests, vllm_compat=True).failed == 1  # for vLLM a token is a success


def test_a_goodput_limit_is_inclusive_and_all_must_be_met() -> None:
    requests = [request(0, at_ms=[100, 110]), request(1, at_ms=[100, 120])]
    objectives = parse_objectives(["ttft:100", "tpot:10"], None)
    summary = summary_of(*requests, objectives=objectives)
    assert summary.goodput is not None
    assert summary.goodput.verdict.good.tolist() == [True, False]


@pytest.mark.parametrize("text", ["ttft", "ttft:x", "ttft:-1", "speed:3", "p101_ttft:3", "p99_x:1"])
def test_an_objective_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(BadSettings, match="--goodput"):
        parse_objectives([text], None)


def test_concurrency_is_swept_not_counted_by_the_second() -> None:
    """vLLM's client sees two or more requests at once where one follows the other."""
    one_by_one = [request(k, start_ms=410 * k, at_ms=[410 * k + 400]) for k in range(10)]
    summary = summary_of(*one_by_one)
    assert summary.peak_concurrency == 1
    assert summary.mean_concurrency == pytest.approx(4.0 / (0.41 * 9 + 0.4))
    assert summary_of(*one_by_one, vllm_compat=True).peak_concurrency >= 3


def test_waiting_for_the_limit_is_queueing_and_not_the_clients_lag() -> None:
    event = request(
        start_ms=500,
        at_ms=[600],
        intended_ns=100 * MS,
        fired_ns=102 * MS,
        admitted_ns=499 * MS,
    )
    measured = measure([event])
    assert measured.queue == pytest.approx([0.397])
    assert measured.lag == pytest.approx([0.003])
    assert measured.ttft_from_intended == pytest.approx([0.500])


def test_a_client_that_is_late_or_busy_is_not_trusted() -> None:
    late = [request(k, start_ms=10 * k + 20, at_ms=[400], intended_ns=0) for k in range(9)]
    assert any("late" in doubt for doubt in summary_of(*late).client.doubts)
    log = log_of([request(at_ms=[400])])
    log.health = [
        HealthEvent(at_ns=k * MS, cpu=0.95, loop_lag_ns=50 * MS, in_flight=1) for k in range(5)
    ]
    doubts = " ".join(summarise(log, Question()).client.doubts)
    assert "event loop" in doubts
    assert "95% of a core" in doubts
    burst = log_of([request(k, start_ms=30, at_ms=[90], intended_ns=0) for k in range(3)])
    burst.start.request_rate = None
    assert summarise(burst, Question()).client.is_trusted


def test_inputs_are_told_apart_into_texts_and_images() -> None:
    requests = [
        request(k, at_ms=[9], prompt_tokens=1400, text_tokens=100, num_images=1) for k in (0, 1)
    ]
    inputs = summary_of(*requests).inputs
    assert (inputs.total_tokens, inputs.text_tokens, inputs.other_tokens) == (2800, 200, 2600)
    silent = summary_of(request(at_ms=[9], prompt_tokens=None, text_tokens=7)).inputs
    assert (silent.total_tokens, silent.other_tokens, silent.without_usage) == (7, None, 1)


def test_warm_ups_and_probes_are_not_measured() -> None:
    summary = summary_of(
        request(0, at_ms=[50]),
        request(0, start_ms=-90, at_ms=[-10], phase="warmup"),
        request(0, at_ms=[20], phase="probe"),
    )
    assert summary.completed == 1
    assert summary.probes is not None
    assert summary.probes.median == pytest.approx(0.020)


def test_the_servers_counters_are_told_by_their_difference() -> None:
    log = log_of([request(at_ms=[50])])
    before = {
        "vllm:prefix_cache_hits_total": 100.0,
        "vllm:prefix_cache_queries_total": 400.0,
        "vllm:num_preemptions_total": 5.0,
        "vllm:spec_decode_num_drafts_total": 10.0,
        "vllm:spec_decode_num_draft_tokens_total": 30.0,
        "vllm:spec_decode_num_accepted_tokens_total": 15.0,
    }
    gained = dict(zip(before, (90.0, 100.0, 2.0, 100.0, 300.0, 150.0), strict=True))
    after = {name: value + gained[name] for name, value in before.items()}
    log.server = [ServerEvent(at_ns=-1, values=before), ServerEvent(at_ns=99, values=after)]
    server = summarise(log, Question()).server
    assert server is not None
    assert server.prefix_cache_hit_rate == pytest.approx(0.9)
    assert server.image_cache_hit_rate is None
    assert server.preemptions == 2
    assert server.speculative is not None
    assert server.speculative.acceptance_rate == pytest.approx(50)
    assert server.speculative.acceptance_length == pytest.approx(2.5)
    text = table(log.start, summarise(log, Question()), Wording(metrics=("ttft",)))
    assert "Prefix cache hits (% of tokens):         90.00" in text
    assert "Acceptance length:                       2.50" in text
    log.server = log.server[:1]
    assert summarise(log, Question()).server is None


@given(total=st.integers(0, 400), weights=st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_spreading_keeps_the_sum_and_leaves_no_chunk_empty_if_it_can(
    total: int, weights: list[int]
) -> None:
    counts = spread(total, np.array(weights, float))
    assert counts.sum() == total
    assert (counts >= (1 if total >= len(weights) else 0)).all()


chunks = st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 9)), min_size=1, max_size=30)


@given(chunks=chunks, ttft=st.integers(1, 10**9), total=st.integers(1, 90))
def test_ttft_and_all_gaps_make_up_the_latency(
    chunks: list[tuple[int, int]], ttft: int, total: int
) -> None:
    at_ns = ttft + np.cumsum([0, *(gap for gap, _ in chunks[1:])])
    event = request(
        at_ms=[0] * len(chunks),
        chunk_ns=at_ns.tolist(),
        chunk_chars=[chars for _, chars in chunks],
        completion_tokens=total,
    )
    times = token_times(event)
    gaps = gaps_per_token(times)
    assert ttft / 1e9 + gaps.sum() == pytest.approx(int(at_ns[-1]) / 1e9)
    assert (gaps >= 0).all()
    if times.counts.min() > 0:
        assert len(gaps) == times.counts[1:].sum()


spans = st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 500)), min_size=1, max_size=40)


@given(spans=spans, order=st.randoms())
def test_concurrency_is_bounded_and_blind_to_order(
    spans: list[tuple[int, int]], order: Any
) -> None:
    starts = np.array([start for start, _ in spans], np.int64)
    ends = starts + np.array([length for _, length in spans], np.int64)
    steps = sweep(starts, ends)
    brute = max(int(((starts <= t) & (t < ends)).sum()) for t in starts)
    assert steps.peak() == brute <= len(spans)
    first, last = int(starts.min()), int(ends.max())
    assert steps.mean(first, last) == pytest.approx((ends - starts).sum() / (last - first))
    assert steps.mean(first, last) <= steps.peak()
    assert steps.level[-1] == 0
    shuffled = list(range(len(spans)))
    order.shuffle(shuffled)
    again = sweep(starts[shuffled], ends[shuffled])
    assert (again.at_ns == steps.at_ns).all()
    assert (again.level == steps.level).all()
    window = steady_window(steps, 0.8)
    assert window is not None
    assert first <= window[0] < window[1] <= last


@given(times=st.lists(st.integers(0, 5000), min_size=1, max_size=80), width=st.integers(1, 6000))
def test_the_peak_rate_is_that_of_the_fullest_window(times: list[int], width: int) -> None:
    at_ns = np.array(times, np.int64)
    brute = max(int(((at_ns >= t) & (at_ns < t + width)).sum()) for t in times)
    assert peak_rate(at_ns, np.ones_like(at_ns), width) == pytest.approx(brute / (width / 1e9))


def test_the_steady_window_leaves_out_the_ramp_and_the_drain() -> None:
    starts = np.array([0, 10, 20, 30, 40], np.int64)
    ends = np.array([200, 200, 200, 210, 240], np.int64)
    assert steady_window(sweep(starts, ends), 0.8) == (30, 200)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062047), (2, 4.3026527), (4, 2.7764451), (30, 2.0422725)]
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, expected: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(expected, rel=1e-6)


def test_the_interval_of_repeats_is_students() -> None:
    interval = confidence([10.0, 12.0, 14.0])
    assert interval.mean == pytest.approx(12)
    assert interval.half == pytest.approx(4.3026527 * 2 / 3**0.5, rel=1e-6)
    assert confidence([1.0]).half == float("inf")


def test_the_parts_of_a_request_follow_one_another() -> None:
    opened = request(0, start_ms=100, at_ms=[150, 160], connected_ns=103 * MS, sent_ns=107 * MS)
    reused = request(1, start_ms=100, at_ms=[150, 160], sent_ns=102 * MS, headers_ns=120 * MS)
    measured = measure([opened, reused])
    assert measured.connect.tolist() == pytest.approx([0.003, math.nan], nan_ok=True)
    assert measured.upload.tolist() == pytest.approx([0.004, 0.002])
    assert measured.headers.tolist() == pytest.approx([0.043, 0.018])
    summary = summarise(log_of([opened, reused]), Question())
    assert summary.metrics["connect"].count == 1
    assert summary.metrics["headers"].count == 2


def test_a_server_that_counts_fewer_tokens_than_it_sends_is_told_of() -> None:
    whole = {"at_ms": [50, 60, 70, 80], "chunk_kinds": "ccce"}
    log = log_of(
        [request(0, completion_tokens=2, **whole), request(1, completion_tokens=3, **whole)]
    )
    summary = summarise(log, Question())
    assert summary.outputs.undercounted == 1
    assert "Answers with fewer tokens than chunks:   1 " in table(
        log.start, summary, Wording(metrics=("ttft",))
    )


@pytest.mark.parametrize(
    ("backend", "counted", "fields", "is_told"),
    [
        ("openai", 104, {}, False),
        ("openai", 130, {}, True),
        ("openai", 70, {}, True),
        ("openai-chat", 160, {}, False),
        ("openai-chat", 200, {}, True),
        ("openai-chat", 900, {"num_images": 1}, False),
        ("openai-chat", 900, {"turn": 1}, False),
    ],
)
def test_a_tokenizer_that_is_not_the_servers_is_told_of(
    backend: str, counted: int, fields: dict[str, Any], is_told: bool
) -> None:
    event = request(at_ms=[50, 60], text_tokens=100, prompt_tokens=counted, **fields)
    notes = summarise(log_of([event], backend=backend), Question()).notes
    assert bool(notes) is is_told
    assert not notes or "give the served model's as --tokenizer" in notes[0]
