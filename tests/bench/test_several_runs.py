"""Repeats, sweeps and searches: what several runs say together."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from glimt.bench import cli
from glimt.bench.compare import compare, load
from glimt.bench.events import HealthEvent, PowerEvent, read_log
from glimt.bench.figures.energy import energy
from glimt.bench.figures.loads import keeps
from glimt.bench.figures.objectives import parse_objectives
from glimt.bench.figures.pairs import block_bootstrap
from glimt.bench.figures.question import Question
from glimt.bench.figures.scalars import differences, intervals, welch
from glimt.bench.figures.summary import Summary, summarise
from glimt.bench.options import (
    DataOptions,
    LoadOptions,
    Options,
    OutputOptions,
    SearchOptions,
    TargetOptions,
)
from glimt.bench.outputs import Run, show
from glimt.bench.report.comparison import comparison_page, comparison_tables
from glimt.bench.report.exports import markdown
from glimt.bench.report.series import (
    repeats_table,
    sweep_page,
    sweep_table,
    text_table,
    varied_by,
    verdicts,
)
from glimt.bench.search import Sweep, highest
from glimt.bench.serve import run_all
from glimt.errors import BadSettings
from tests.support.bench_logs import MS, log_of, request, run_with
from tests.support.mock_server import MockServer

OBJECTIVES = parse_objectives(["ttft:50"], None)


def summaries(*ttfts_ms: float) -> list[Summary]:
    return [summarise(run_with(ttft), Question()) for ttft in ttfts_ms]


def test_repeats_give_students_interval_of_each_number() -> None:
    scalar, interval = intervals(summaries(10, 12, 14))["mean_ttft_ms"]
    assert scalar.unit == "ms"
    assert interval.mean == pytest.approx(12)
    assert interval.half == pytest.approx(4.3026527 * 2 / 3**0.5, rel=1e-5)


def test_paired_repeats_are_told_apart_where_independent_ones_are_not() -> None:
    """The repeats differ much more among themselves than the two sides do."""
    before, after = summaries(10, 50, 90), summaries(11, 51.1, 91)
    paired = differences(before, after, is_paired=True)["mean_ttft_ms"]
    apart = differences(before, after, is_paired=False)["mean_ttft_ms"]
    assert paired.verdict == "worse"
    assert apart.verdict == ""
    assert paired.after - paired.before == pytest.approx(1.033, abs=0.01)
    better = differences(after, before, is_paired=True)["mean_ttft_ms"]
    assert better.verdict == "better"


def test_single_runs_have_no_interval_and_no_verdict() -> None:
    change = differences(summaries(10), summaries(20), is_paired=True)["mean_ttft_ms"]
    assert change.ratio == pytest.approx(1.0)
    assert change.verdict == ""
    assert math.isinf(change.interval.low)


def test_welchs_interval_is_that_of_the_textbook() -> None:
    first, second = [27.5, 21.0, 19.0, 23.6, 17.0], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5]
    interval = welch(first, second)
    # Mean difference, and t(0.975, 5) times the standard error of two means.
    assert interval.mean == pytest.approx(np.mean(second) - np.mean(first))
    error = (np.var(first, ddof=1) / 5 + np.var(second, ddof=1) / 6) ** 0.5
    assert interval.half == pytest.approx(2.5706 * error, rel=1e-3)


def test_the_block_bootstrap_is_wider_for_dependent_neighbours() -> None:
    noise = np.random.default_rng(1).normal(size=400)
    dependent = np.repeat(noise[:50], 8)
    assert block_bootstrap(dependent).half > 1.3 * 1.96 * dependent.std() / 20
    assert block_bootstrap(noise).half == pytest.approx(1.96 * noise.std() / 20, rel=0.3)


@pytest.mark.parametrize(
    ("limit", "expected"), [(3.0, 3.0), (0.5, 0.5), (100, 64), (0.1, None), (64, 64), (1.0, 1.0)]
)
def test_the_search_finds_the_highest_rate(limit: float, expected: float | None) -> None:
    asked: list[float] = []

    def does(rate: float) -> bool:
        asked.append(rate)
        return rate <= limit

    found = highest(0.5, 64, 0.02, does)
    if expected is None:
        assert found is None
        assert asked == [0.5]
    else:
        assert found is not None
        assert found <= limit
        assert found == pytest.approx(expected, rel=0.02)
        assert len(asked) < 20


def test_a_rate_is_kept_only_without_failures_and_by_99_of_100_requests() -> None:
    objectives = parse_objectives(["ttft:50", "p90_e2el:200"], None)

    def kept(slow: int, failed: int) -> bool:
        requests = [request(k, at_ms=[90.0 if k < slow else 40.0]) for k in range(100)]
        for event in requests[:failed]:
            event.failure = "broken"
        return keeps(summarise(log_of(requests), Question(objectives=objectives)), objectives)

    assert kept(0, 0)
    assert kept(1, 0)
    assert not kept(2, 0)
    assert not kept(0, 1)


@pytest.mark.parametrize(
    "text", ["rate", "rate=", "speed=1", "rate=0", "rate=x", "concurrency=1.5"]
)
def test_a_sweep_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(BadSettings, match="--sweep"):
        Sweep.parse([text])


def test_a_sweep_changes_one_option() -> None:
    options = Options(load=LoadOptions(request_rate=3.0, num_prompts=7))
    rates = [each.load for each in Sweep.parse(["rate=1,2.5"]).options(options)]
    assert [load.request_rate for load in rates] == [1, 2.5]
    limits = [each.load for each in Sweep.parse(["concurrency=1", "8"]).options(options)]
    assert [load.max_concurrency for load in limits] == [1, 8]
    assert all(load.num_prompts == 7 for load in (*rates, *limits))


def test_tables_of_several_runs_say_what_they_compare() -> None:
    runs = [(log, summarise(log, Question())) for log in (run_with(5), run_with(9))]
    runs += [(log, summarise(log, Question())) for log in (run_with(30, request_rate=2.0),)]
    text = text_table(sweep_table(runs, "rate"))
    assert [line.split()[0] for line in text.splitlines()[3:]] == ["rate", "2", "10"]
    assert "±" in text
    assert text.count("kept up") == 2
    changes = differences(summaries(10, 11, 12), summaries(30, 31, 32), is_paired=True)
    assert "worse" in text_table(comparison_tables(changes, [], [])[0])


def test_a_sweep_says_which_loads_do_and_where_its_knee_is() -> None:
    # tokens a second over latency: 30/30, 60/35 and 70/300 of any unit
    loads = ((10.0, 10.0, 1.0), (20.0, 15.0, 2.0), (30.0, 280.0, 3.0))
    logs = [run_with(ttft, request_rate=rate) for rate, ttft, _ in loads]
    for log, (_, _, speed) in zip(logs, loads, strict=True):
        log.end = msgspec.structs.replace(log.end, end_ns=round(1000 * MS / speed))
    question = Question(objectives=OBJECTIVES)
    runs = [(log, summarise(log, question)) for log in logs]
    bend = "knee at 20 requests per second: beyond it latency grows faster than throughput"
    best = ["good", "up to 20 requests per second every objective is kept"]
    assert verdicts(runs, "rate", OBJECTIVES) == [best, ["plain", bend]]
    assert verdicts(runs, "rate", OBJECTIVES, is_search=True) == [best]
    assert verdicts(runs[:2], "rate", ()) == []
    (none,) = verdicts(runs[2:], "rate", OBJECTIVES)
    assert none == ["bad", "not even 30 requests per second keeps every objective"]
    page = sweep_page(runs, "rate", [best])
    assert page["pills"] == [best]
    each, best = page["charts"][-1]["series"]
    assert {point[2] for point in each["points"]} == {"10", "20", "30"}
    assert best["points"] == [max(point[:2] for point in each["points"])]  # all have one TPOT


def test_markdown_begins_with_what_several_runs_say_together() -> None:
    runs = [(log, summarise(log, Question())) for log in (run_with(5), run_with(9))]
    page = sweep_page(runs, "rate", [["good", "all is well"]])
    text = markdown(runs, [page])
    assert text.startswith("- all is well\n\n## Sweep\n\nMeans of repeats")
    lines = text.splitlines()
    place = next(k for k, line in enumerate(lines) if line.startswith("| rate |"))
    assert len({line.count("|") for line in lines[place : place + 3]}) == 1
    assert "| kept up |" in lines[place + 2]
    compared = comparison_page(*compare([runs[0][0]], [runs[1][0]], Question()))
    assert "## Request by request" in markdown(runs[1:], [compared])
    assert text.count("## m, 10 requests") == 2


def test_a_client_that_was_too_busy_is_told_of_in_tables_of_several_runs() -> None:
    busy = run_with(5)
    busy.health = [HealthEvent(at_ns=MS, cpu=0.95, loop_lag_ns=0, in_flight=1)]
    runs = [(log, summarise(log, Question())) for log in (busy, run_with(5, request_rate=2.0))]
    lines = text_table(sweep_table(runs, "rate")).splitlines()
    assert lines[-2].endswith("kept up")
    assert lines[-1].endswith("too busy")
    assert max(map(len, text_table(sweep_table(runs[:1], "concurrency")).splitlines())) <= 80
    judged = [(log, summarise(log, Question(objectives=OBJECTIVES))) for log, _ in runs]
    assert verdicts(judged, "rate", OBJECTIVES) == [
        ["warn", "up to 10 requests per second every objective is kept"]
    ]
    table = repeats_table(intervals([summary for _, summary in runs]), 1)
    assert "in 1 of them the client did not keep up" in table["says"]


def test_words_of_a_server_do_not_steer_the_terminal() -> None:
    log = run_with(5)
    log.requests[0].failure, log.requests[0].error = (
        "broken",
        "full\x1b]0;mine\x07\nnote: all is well",
    )
    said: list[str] = []
    show(Options(), Run(log, summarise(log, Question())), said.append, lambda _: None)
    assert said == [r"note: full\x1b]0;mine\x07\x0anote: all is well"]


def test_energy_is_the_counters_or_the_integral_of_power() -> None:
    log = log_of([request(at_ms=[100, 2000], completion_tokens=50)])
    log.power = [
        PowerEvent(at_ns=k * 500 * MS, watts=[100.0, 50.0], utilisation=[0.5, 0.3])
        for k in range(4)
    ]
    used = energy(log, 50)
    assert used is not None
    assert used.mean_watts == pytest.approx(150)
    assert used.joules == pytest.approx(300)
    assert used.joules_per_token == pytest.approx(6)
    for k, event in enumerate(log.power):
        event.joules = [1000.0 + 40 * k, 500.0 + 10 * k]
    counted = energy(log, 50)
    assert counted is not None
    assert counted.mean_watts == pytest.approx(100)
    log.power = log.power[:1]
    assert energy(log, 50) is None


@pytest.fixture(scope="module")
def mock() -> Iterator[MockServer]:
    server = MockServer("--ttft-ms", "15", "--gap-ms", "1")
    yield server
    server.stop()


@pytest.fixture
def options(mock: MockServer, tmp_path: Path) -> Options:
    return Options(
        target=TargetOptions(
            backend="openai-chat",
            endpoint="/v1/chat/completions",
            base_url=mock.url,
            skip_tokenizer_init=True,
        ),
        load=LoadOptions(num_prompts=8),
        data=DataOptions(random_input_len=5, random_output_len=4),
        output=OutputOptions(disable_tqdm=True, html=str(tmp_path / "r.html")),
    )


def test_workers_share_one_schedule_and_one_limit(options: Options, tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    output = replace(options.output, raw=str(raw), html=None)
    timed = LoadOptions(num_prompts=20, request_rate=100.0, max_concurrency=2, workers=2)
    assert run_all(replace(options, load=timed, output=output), lambda _: None, lambda _: None) == 0
    (log,) = load(raw)
    summary = summarise(log, Question())
    assert (summary.completed, summary.peak_concurrency) == (20, 2)
    assert [event.index for event in log.requests] == list(range(20))
    assert [event.worker for event in log.requests] == [0, 1] * 10
    intended = [event.intended_ns for event in log.requests]
    assert intended == sorted(intended)
    assert intended[-1] == 200 * MS
    assert {sample.worker for sample in log.health} <= {0, 1}


def test_a_run_says_what_it_changed(options: Options, tmp_path: Path) -> None:
    raw = str(tmp_path / "raw.jsonl")
    told: list[str] = []
    first = replace(options, output=replace(options.output, raw=raw))
    assert run_all(first, lambda _: None, told.append) == 0
    assert not any("Comparison" in text for text in told)
    second = replace(options, output=replace(options.output, compare=[raw]))
    assert run_all(second, lambda _: None, told.append) == 0
    assert "Request by request" in told[-1]
    assert "Request by request" in (tmp_path / "r.html").read_text()
    missing = replace(options, output=replace(options.output, compare=["none.jsonl"]))
    with pytest.raises(BadSettings, match="cannot be read"):
        run_all(missing, lambda _: None, told.append)


def test_a_sweep_and_a_search_run_through(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    raw = str(tmp_path / "r.jsonl")
    options = replace(options, output=replace(options.output, raw=raw))
    swept = replace(options, search=SearchOptions(sweep=["concurrency=1,4"]))
    swept = replace(swept, load=replace(swept.load, repeats=2))
    assert run_all(swept, lambda _: None, told.append) == 0
    assert sum("Serving Benchmark Result" in text for text in told) == 4
    assert told[-1].startswith("Sweep")
    assert cli.report(raw) == 0
    assert told[-1] in capsys.readouterr().out
    logs = read_log(Path(raw))
    assert varied_by(logs) == "concurrency"
    assert varied_by(logs[:2]) is None
    with pytest.raises(BadSettings, match="runs after are a sweep: they differ in their conc"):
        compare(logs[:2], logs, Question())
    assert (tmp_path / "r.html").stat().st_size < 1_000_000
    search = SearchOptions(find_max_rate=True, search_low=200, search_high=400)
    easy = replace(options.figures, goodput=["e2el:60000"])
    found = replace(options, search=search, figures=easy)
    assert run_all(found, lambda _: None, told.append) == 0
    assert told[-1] == (
        "Highest rate that keeps the objectives: 400 requests/s, where the search ends; try a "
        "higher --search-high"
    )
    hard = replace(found, figures=replace(options.figures, goodput=["ttft:1"]))
    assert run_all(hard, lambda _: None, told.append) == 1
    assert told[-1].startswith("Not even 200")
