"""The report: one file, small, without network, safe whatever a server says; in a browser."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimt.bench.compare import compare
from glimt.bench.events import EventLog, HealthEvent, PowerEvent, ServerEvent
from glimt.bench.figures.objectives import parse_objectives
from glimt.bench.figures.question import Question
from glimt.bench.figures.scalars import intervals
from glimt.bench.figures.summary import summarise
from glimt.bench.report.comparison import comparison_page
from glimt.bench.report.exports import markdown, write_csv
from glimt.bench.report.html import MAX_BYTES, report
from glimt.bench.report.page import run_page
from glimt.bench.report.series import repeats_page, repeats_table, sweep_page
from glimt.bench.report.thinning import by_second, evenly, histogram, peaks
from tests.support.bench_logs import MS, log_of, request

OBJECTIVES = parse_objectives(["ttft:200", "p99_e2el:900"], None)
QUESTION = Question(objectives=OBJECTIVES)


def big_log(num_requests: int = 1000, num_tokens: int = 128) -> EventLog:
    """A run like that of the published table: thousands of chunks, thinking, a few failures."""
    random = np.random.default_rng(0)
    requests = []
    for index in range(num_requests):
        start = float(index * 50)
        gaps = random.gamma(2, 10, num_tokens)
        fields: dict[str, Any] = {
            "chunk_kinds": "r" * 40 + "c" * (num_tokens - 40),
            "prompt_tokens": int(random.integers(200, 6000)),
            "text_tokens": 90,
            "num_images": 1,
            "image_pixels": 1_000_000,
        }
        if index % 100 == 7:
            fields |= {"failure": "broken", "error": "</script><script>alert(1)</script>"}
        at_ms = (start + 300 + np.cumsum(gaps)).tolist()
        requests.append(request(index, start_ms=start, at_ms=at_ms, **fields))
    log = log_of(requests, model="<b>model</b>")
    seconds = log.end.end_ns // 1_000_000_000
    log.health = [
        HealthEvent(at_ns=k * 100 * MS, cpu=0.2, loop_lag_ns=MS, in_flight=3)
        for k in range(10 * seconds)
    ]
    log.server = [
        ServerEvent(at_ns=k * 1000 * MS, values={"vllm:num_requests_running": float(k % 30)})
        for k in range(seconds)
    ]
    log.power = [
        PowerEvent(at_ns=k * 1000 * MS, watts=[300.0], utilisation=[0.9]) for k in range(seconds)
    ]
    return log


@pytest.fixture(scope="module")
def page() -> str:
    log = big_log()
    summary = summarise(log, QUESTION)
    return report(
        "A <model>", "sub", "glimt bench serve", [run_page(log, summary, OBJECTIVES, "x")]
    )


def test_a_report_of_a_thousand_requests_is_small_and_complete(page: str) -> None:
    assert len(page.encode()) < 300_000
    content = data_of(page)
    (run,) = content["pages"]
    assert len(run["waterfall"]) == 300
    assert len(run["points"]) == 990
    assert run["x_name"] == "image tokens"
    assert run["has_thinking"]
    assert sum(bar[2] for bar in run["answers"]) == 990
    assert {pill[0] for pill in run["pills"]} >= {"bad", "warn", "plain"}
    assert [chart["title"] for chart in run["strips"]] == ["Server: requests", "GPUs"]


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r"const REPORT = (.*);</script>", page)
    assert found is not None
    return dict(json.loads(found[1]))


def test_a_report_of_many_runs_stays_below_a_megabyte() -> None:
    log = big_log(num_tokens=60)
    summary = summarise(log, QUESTION)
    runs = [run_page(log, summary, OBJECTIVES, f"{k}", detail=4 / 20) for k in range(20)]
    assert len(report("x", "", "", runs).encode()) < MAX_BYTES


def test_nothing_that_a_server_says_becomes_part_of_the_page(page: str) -> None:
    assert "<script>alert" not in page
    assert "<b>model" not in page
    assert page.count("<script>") == 3
    assert "A &lt;model&gt;" in page
    texts = [text for _, text in data_of(page)["pages"][0]["facts"]]
    assert "</script><script>alert(1)</script>" in texts


def test_the_page_loads_nothing(page: str) -> None:
    assert not re.search(r"(src|href)=", page)
    assert "default-src 'none'" in page
    assert "{{" not in page


def test_what_was_read_before_and_after_the_run_is_not_drawn() -> None:
    log = log_of([request(at_ms=[50, 3000])])
    log.server = [
        ServerEvent(at_ns=k * 1000 * MS, values={"vllm:generation_tokens_total": 10.0 * k})
        for k in (-1, 0, 1, 2, 4)
    ]
    (chart,) = run_page(log, summarise(log, QUESTION), OBJECTIVES, "x")["strips"]
    assert chart["series"][0]["points"] == [[0, 10], [1, 10], [2, 10]]


def test_the_waterfall_marks_gaps_from_each_limit_on_where_they_lie() -> None:
    at_ms = [100, 110, 140, 150, 200]
    log = log_of([request(0, at_ms=at_ms), request(1, at_ms=[50, 60]), request(2, at_ms=[9])])
    rows = run_page(log, summarise(log, QUESTION), OBJECTIVES, "x", gap_limits_ms=(30, 50))
    slow, even, single = rows["waterfall"]
    assert slow[8] == "0" * 4 + "1" * 12 + "0" * 4 + "2" * 20
    assert (slow[9], even[9], single[9]) == (50, 10, 0)
    assert even[8] == single[8] == ""
    assert rows["gap_limits_ms"] == [30, 50]


def test_an_overloaded_clients_objectives_are_never_green() -> None:
    log = log_of([request(at_ms=[50, 60])])
    for cpu, kind in ((0.1, "good"), (0.95, "warn")):
        log.health = [HealthEvent(at_ns=MS, cpu=cpu, loop_lag_ns=0, in_flight=1)]
        pills = run_page(log, summarise(log, QUESTION), OBJECTIVES, "x")["pills"]
        assert [pill[0] for pill in pills[:2]] == [kind, kind]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_a_browser_draws_every_page_without_an_error(page: str, tmp_path: Path) -> None:
    log = big_log(200)
    summary = summarise(log, QUESTION)
    pages = [
        sweep_page([(log, summary), (log, summary)], "rate"),
        comparison_page(*compare([log], [log], QUESTION)),
        repeats_page(repeats_table(intervals([summary, summary]), 0)),
    ]
    for number, text in enumerate([page, *(report("x", "y", "z", [each]) for each in pages)]):
        path = tmp_path / f"{number}.html"
        path.write_text(text)
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu"]
        command += ["--enable-logging=stderr", "--dump-dom", f"file://{path}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert "CONSOLE" not in done.stderr
        assert "<table>" in done.stdout
        assert number == 3 or done.stdout.count("<svg") >= 5


def test_thinning_keeps_ends_and_peaks() -> None:
    assert evenly(list(range(100)), 5) == [0, 25, 50, 74, 99]
    points = [(float(x), 1.0) for x in range(1000)]
    points[777] = (777.0, 9.0)
    thinned = peaks(points, 50)
    assert len(thinned) == 50
    assert [777.0, 9.0] in thinned
    assert sum(bar[2] for bar in histogram([1, 1, 2, 900])) == 4
    middles, rates = by_second(np.array([0.1, 0.2, 9.9]), None, 10.0, 400)
    width = middles[1] - middles[0]
    assert sum(rates) * width == pytest.approx(3)


def test_the_csv_has_a_line_for_every_request(tmp_path: Path) -> None:
    log = log_of([request(0, at_ms=[50, 60]), request(1, at_ms=[], failure="connect", status=None)])
    write_csv(tmp_path / "x.csv", [log])
    with (tmp_path / "x.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["ttft_ms"], first["tpot_ms"], first["failure"]) == ("50.0", "10.0", "")
    assert (second["ttft_ms"], second["failure"]) == ("", "connect")


def test_markdown_has_the_figures_of_each_run() -> None:
    log = log_of([request(0, at_ms=[50, 60])])
    text = markdown([(log, summarise(log, QUESTION))])
    assert "| Time to First Token | 50.00 |" in text
    assert "| good requests | 100.0% |" in text
