"""Comparisons: two saved runs side by side, and what there is to doubt of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from glimt.bench.compare import compare, compare_runs, load
from glimt.bench.events import HealthEvent, write_log
from glimt.bench.figures.pairs import paired_changes
from glimt.bench.figures.question import Question
from glimt.bench.figures.summary import summarise
from glimt.bench.options import (
    Options,
)
from glimt.bench.outputs import wording
from glimt.bench.report.comparison import comparison_page
from glimt.bench.report.result import result as result_of
from glimt.errors import BadSettings
from tests.support.bench_logs import MS, run_with


def test_the_same_requests_are_compared_one_by_one() -> None:
    before, after = run_with(20), run_with(22)
    after.requests[3].failure = "broken"
    changes = {change.metric: change for change in paired_changes(before.requests, after.requests)}
    assert changes["ttft"].interval.mean == pytest.approx(0.002)
    assert changes["ttft"].interval.count == 9
    assert changes["ttft"].faster == 0
    assert changes["tpot"].interval.mean == pytest.approx(0, abs=1e-9)


def test_a_result_of_vllms_client_can_be_compared(tmp_path: Path) -> None:
    theirs = Path(__file__).parent / "vllm_0.33_result.json"
    (log,) = load(theirs)
    ours = tmp_path / "raw.jsonl"
    write_log(ours, [log])
    changes, pairs, doubts, _ = compare(load(theirs), load(ours), Question())
    assert all(change.before == change.after for change in changes.values())
    assert [pair.interval.mean for pair in pairs] == [0, 0, 0]
    assert doubts == []
    done = subprocess.run(
        [sys.executable, "-m", "glimt", "bench", "compare", str(theirs), str(ours)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Request by request" in done.stdout


def glimt_bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "glimt", "bench", *words]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_two_saved_runs_are_compared_by_an_option_too(tmp_path: Path) -> None:
    before, after, page = (str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "c.html"))
    write_log(Path(before), [run_with(20)])
    write_log(Path(after), [run_with(30)])
    wanted = glimt_bench("compare", before, after)
    assert wanted.returncode == 0, wanted.stderr
    assert "+10.00 worse" in wanted.stdout
    for words in (["serve"], ["report"]):
        done = glimt_bench(*words, "--compare", before, after, "--html", page)
        assert (done.returncode, done.stdout) == (0, wanted.stdout), done.stderr
        assert "Request by request" in Path(page).read_text()
    done = glimt_bench("report", after, "--compare", before)
    assert wanted.stdout in done.stdout
    for wrong in (["report"], ["report", after, "--compare", before, after]):
        done = glimt_bench(*wrong)
        assert (done.returncode, "report --compare BEFORE AFTER" in done.stderr) == (2, True)


def test_other_requests_are_not_paired() -> None:
    other = run_with(20)
    other.requests[0].prompt_tokens = 99
    assert compare([run_with(20)], [other], Question()).pairs == []


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"duration": 1}'])
def test_a_file_without_requests_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(content or "x")
    with pytest.raises(BadSettings, match=r"x\.json"):
        load(path)


def test_a_page_of_a_comparison_shows_changes_with_their_intervals_and_both_distributions() -> None:
    fast, slow = run_with(10), run_with(20)
    page = comparison_page(*compare([fast], [slow], Question()))
    changes, *shares = page["charts"]
    assert changes["rows"][0] == ["Mean TTFT", 100, 100, 100, "worse"]
    assert [row[0] for row in changes["rows"]] == ["Mean TTFT", "Mean TPOT", "Mean E2EL"]
    first, second = shares[0]["series"]
    assert first["points"][0] == [10, 0]
    assert second["points"][-1] == [20, 100]
    repeated = comparison_page(*compare([fast, run_with(12)], [slow, run_with(21)], Question()))
    names = [row[0] for row in repeated["charts"][0]["rows"]]
    assert "P99 TTFT" in names
    assert "Failed" not in names  # nothing is a percentage of none


def test_a_comparison_of_what_was_not_asked_alike_says_so() -> None:
    asked = {"request_rate": "10.0", "output_len": 8, "seed": 3}
    fast, slow = run_with(10, settings=asked), run_with(20, settings=asked | {"seed": 4})
    assert compare([fast], [slow], Question()).doubts == []
    slow.start.settings = {"request_rate": "20.0", "base_url": "http://b"}
    slow.start.provenance = {"workload": "x"}
    fast.start.provenance = {"workload": "y"}
    (doubt,) = compare([fast], [slow], Question()).doubts
    assert doubt == (
        "NOT ALIKE: the prompts differ; --request-rate: 10.0 and 20.0; "
        "--output-len: 8 and none given"
    )
    slow.start.settings = {}
    (doubt,) = compare([fast], [slow], Question()).doubts
    assert doubt == "NOT ALIKE: the prompts differ"


def test_a_comparison_says_which_side_was_measured_by_a_client_that_was_too_busy(
    tmp_path: Path,
) -> None:
    busy = run_with(5)
    busy.health = [HealthEvent(at_ns=MS, cpu=0.95, loop_lag_ns=0, in_flight=1)]
    calm, log, result = run_with(5), tmp_path / "busy.jsonl", tmp_path / "busy.json"
    write_log(log, [busy])
    question = Question()
    details = result_of(
        busy, summarise(busy, question), wording(Options()), metadata={}, is_detailed=True
    )
    result.write_text(json.dumps(details))
    why = "the client used 95% of a core"
    for path in (log, result):
        assert compare([calm], load(path), question).doubts == [f"NOT TRUSTWORTHY after: {why}"]
    told: list[str] = []
    page = compare_runs([busy, calm], [calm, calm], question, told.append)
    assert f"NOT TRUSTWORTHY before in 1 of 2 runs: {why}" in told[0].splitlines()
    assert why in page["tables"][0]["says"]
