"""A search's runs end when their verdict is clear, and not before."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.bench.early import EarlyStop
from glimt.bench.events import read_log
from glimt.bench.figures.loads import keeps
from glimt.bench.figures.objectives import parse_objectives
from glimt.bench.figures.question import Question
from glimt.bench.figures.summary import summarise
from glimt.bench.options import (
    DataOptions,
    FigureOptions,
    LoadOptions,
    Options,
    OutputOptions,
    SearchOptions,
    TargetOptions,
)
from glimt.bench.serve import run_all
from tests.support.bench_logs import MS, log_of, request
from tests.support.mock_server import MockServer


def followed(ttfts_ms: list[float], *goals: str, num_requests: int = 1000) -> EarlyStop:
    """A run with a request each 100 ms; these many are over."""
    early = EarlyStop(parse_objectives(goals, None), num_requests)
    for k, ttft in enumerate(ttfts_ms):
        early.add(request(k, start_ms=100 * k, at_ms=[100 * k + ttft, 100 * k + ttft + 10]))
    return early


def test_a_run_is_missed_once_the_rest_cannot_make_up_for_it() -> None:
    assert followed([60.0] * 10, "ttft:50").look(10**12, []) is None
    early = followed([60.0] * 11, "ttft:50")
    assert early.look(10**12, []) == "missed"
    assert early.why == "ttft is missed: by 11 requests so far"
    assert followed([60.0] * 11, "p90_ttft:50").look(10**12, []) is None
    assert followed([60.0] * 101, "p90_ttft:50").look(10**12, []) == "missed"


def test_open_requests_count_once_they_are_too_old() -> None:
    young, old, begun = (0, False), (-100 * MS, False), (-100 * MS, True)
    for waiting, verdict in (([young] * 11, None), ([old] * 11, "missed"), ([begun] * 11, None)):
        assert followed([], "ttft:50").look(0, waiting) == verdict
    assert followed([], "e2el:50").look(0, [begun] * 11) == "missed"
    assert followed([], "tpot:1").look(0, [begun] * 11) is None


def test_one_failure_is_enough() -> None:
    early = followed([1.0], "ttft:50")
    early.add(request(9, at_ms=[], failure="broken"))
    assert early.look(0, []) == "missed"


def test_a_mean_is_missed_when_the_sum_says_so_and_never_kept_early() -> None:
    assert followed([1.0] * 900, "mean_ttft:50").look(10**12, []) is None
    assert followed([900.0] * 56, "mean_ttft:50").look(10**12, []) == "missed"


def test_a_run_is_kept_when_chance_does_not_explain_it() -> None:
    assert followed([1.0] * 298, "ttft:50").look(10**12, []) is None
    assert followed([1.0] * 299, "ttft:50").look(10**12, []) == "kept"
    assert followed([1.0] * 298 + [60], "ttft:50").look(10**12, []) is None
    assert followed([1.0] * 30, "p90_ttft:50").look(10**12, []) == "kept"


def test_a_run_whose_latency_grows_is_not_kept_early() -> None:
    growing = [1.0 + k / 100 for k in range(400)]
    assert followed(growing, "ttft:50").look(10**12, []) is None


def test_a_run_that_has_just_begun_is_not_kept_early() -> None:
    early = EarlyStop(parse_objectives(["p50_e2el:60000"], None), 1000)
    for k in range(300):
        early.add(request(k, start_ms=k, at_ms=[k + 900, k + 1000]))
    assert early.look(1500 * MS, []) is None
    assert early.look(6000 * MS, []) == "kept"


@given(
    st.lists(st.sampled_from([10.0, 100.0]), min_size=1, max_size=60),
    st.sampled_from(["ttft:50", "p90_ttft:50", "p50_ttft:50", "mean_ttft:50", "e2el:60"]),
)
def test_what_was_missed_early_is_missed_in_the_end(ttfts_ms: list[float], goal: str) -> None:
    objectives = parse_objectives([goal], None)
    requests = [
        request(k, start_ms=100 * k, at_ms=[100 * k + ttft, 100 * k + ttft + 1])
        for k, ttft in enumerate(ttfts_ms)
    ]
    kept = keeps(summarise(log_of(requests), Question(objectives=objectives)), objectives)
    early = EarlyStop(objectives, len(requests))
    for event in requests:
        early.add(event)
        if early.look(10**12, []) == "missed":
            assert not kept
            return


@pytest.fixture(scope="module")
def mock() -> Iterator[MockServer]:
    server = MockServer("--ttft-ms", "15", "--gap-ms", "1")
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("goal", "status", "note"),
    [
        ("ttft:2", 1, "ttft is missed: by"),
        ("p50_e2el:60000", 0, "every objective is kept: after"),
    ],
)
def test_a_search_does_not_wait_for_what_is_clear(
    mock: MockServer, tmp_path: Path, goal: str, status: int, note: str
) -> None:
    raw = tmp_path / "raw.jsonl"
    options = Options(
        target=TargetOptions(
            backend="openai-chat",
            endpoint="/v1/chat/completions",
            base_url=mock.url,
            skip_tokenizer_init=True,
        ),
        load=LoadOptions(num_prompts=2000),
        data=DataOptions(random_input_len=5, random_output_len=4),
        output=OutputOptions(disable_tqdm=True, raw=str(raw)),
        figures=FigureOptions(goodput=[goal]),
        search=SearchOptions(find_max_rate=True, search_low=100, search_high=101),
    )
    told: list[str] = []
    assert run_all(options, told.append, told.append) == status
    log = read_log(raw)[0]
    assert log.end.notes[0].startswith(f"stopped early: {note}")
    assert len(log.requests) < 1000
    cancelled = sum(event.failure == "cancelled" for event in log.requests)
    assert len(log.requests) - cancelled == sum(event.failure is None for event in log.requests)
    assert (cancelled > 0) <= (status == 1)


def test_whole_runs_can_be_asked_for(mock: MockServer, tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    options = Options(
        target=TargetOptions(
            backend="openai-chat",
            endpoint="/v1/chat/completions",
            base_url=mock.url,
            skip_tokenizer_init=True,
        ),
        load=LoadOptions(num_prompts=30),
        data=DataOptions(random_input_len=5, random_output_len=4),
        output=OutputOptions(disable_tqdm=True, raw=str(raw)),
        figures=FigureOptions(goodput=["ttft:2"]),
        search=SearchOptions(
            find_max_rate=True, search_low=100, search_high=101, search_whole_runs=True
        ),
    )
    assert run_all(options, lambda _: None, lambda _: None) == 1
    assert len(read_log(raw)[0].requests) == 30
