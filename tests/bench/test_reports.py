"""What is written: the table in both spellings, the JSON, and the log that gives it all again."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from glimt.bench.events import EventLog, HealthEvent, ServerEvent, read_log, write_log
from glimt.bench.figures.objectives import parse_objectives
from glimt.bench.figures.question import METRICS, Question
from glimt.bench.figures.summary import summarise
from glimt.bench.report.result import result, write_results
from glimt.bench.report.table import Wording, table
from glimt.errors import BadSettings
from tests.support.bench_logs import MS, log_of, request

# Row for row and blank for blank what vLLM 0.12 prints.
OF_VLLM_0_12 = """\
============ Serving Benchmark Result ============
Successful requests:                     2         
Failed requests:                         1         
Maximum request concurrency:             4         
Request rate configured (RPS):           10.00     
Benchmark duration (s):                  0.50      
Total input tokens:                      20        
Total generated tokens:                  7         
Request throughput (req/s):              4.00      
Request goodput (req/s):                 2.00      
Output token throughput (tok/s):         14.00     
Peak output token throughput (tok/s):    7.00      
Peak concurrent requests:                2.00      
Total Token throughput (tok/s):          54.00     
---------------Time to First Token----------------
Mean TTFT (ms):                          60.00     
Median TTFT (ms):                        60.00     
P99 TTFT (ms):                           69.80     
P99.9 TTFT (ms):                         69.98     
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          12.50     
Median TPOT (ms):                        12.50     
P99 TPOT (ms):                           14.95     
P99.9 TPOT (ms):                         14.99     
---------------Inter-token Latency----------------
Mean ITL (ms):                           12.00     
Median ITL (ms):                         10.00     
P99 ITL (ms):                            19.60     
P99.9 ITL (ms):                          19.96     
==================================================
"""  # noqa: W291


@pytest.fixture
def log() -> EventLog:
    requests = [
        request(0, start_ms=0, at_ms=[50, 60, 70, 80]),
        request(1, start_ms=100, at_ms=[170, 180, 200]),
        request(2, start_ms=100, at_ms=[], status=503, failure="http", error="503: full"),
    ]
    log = log_of(requests, end_ms=500, max_concurrency=4)
    log.health = [HealthEvent(at_ns=100 * MS, cpu=0.1, loop_lag_ns=MS, in_flight=2)]
    log.server = [ServerEvent(at_ns=0, values={"vllm:num_requests_running": 2.0})]
    return log


def test_the_compatible_table_is_vllms_to_the_byte(log: EventLog) -> None:
    objectives = parse_objectives(["ttft:60"], None)
    question = Question(percentiles=(99, 99.9), objectives=objectives, vllm_compat=True)
    wording = Wording(metrics=("ttft", "tpot", "itl"), objectives=objectives, vllm_compat=True)
    text = table(log.start, summarise(log, question), wording)
    assert text + "\n" == OF_VLLM_0_12


def test_our_table_begins_with_the_same_rows_and_goes_on(log: EventLog) -> None:
    summary = summarise(log, Question(percentiles=(99, 99.9)))
    lines = table(log.start, summary, Wording(metrics=("ttft", "tpot", "itl"))).splitlines()
    expected = OF_VLLM_0_12.replace("Total Token", "Total token").splitlines()
    expected = [line for line in expected if "goodput" not in line]
    differing = [
        (ours, theirs) for ours, theirs in zip(lines, expected[:-1], strict=False) if ours != theirs
    ]
    # A window of one second does not fit into half a second, and a peak is not a count by seconds.
    assert [ours.split(":")[0] for ours, _ in differing] == [
        "Peak output token throughput (tok/s)",
        "Peak concurrent requests",
    ]
    text = "\n".join(lines)
    assert "Failed: http_503:                        1" in text
    assert "The client kept up." in text


def test_a_table_names_each_objective_and_a_client_that_was_too_slow(log: EventLog) -> None:
    objectives = parse_objectives(["ttft:60"], "mlperf-vlm-interactive")
    log.requests[0].fired_ns += 90 * MS
    summary = summarise(log, Question(objectives=objectives))
    text = table(log.start, summary, Wording(metrics=METRICS, objectives=objectives))
    assert "ttft <= 60 ms:                           33.3% of requests, if the client can" in text
    assert "p99_e2el <= 1500 ms:                     inf ms: missed" in text
    assert "NOT TRUSTWORTHY: requests left late" in text


def test_the_result_has_vllms_keys_and_numbers_json_can_hold(log: EventLog) -> None:
    objectives = parse_objectives(["ttft:60", "p99_e2el:9"], None)
    summary = summarise(log, Question(percentiles=(50, 99.9), objectives=objectives))
    wording = Wording(metrics=("ttft", "tpot", "itl", "e2el"), objectives=objectives)
    content = result(log, summary, wording, {"gpu": "H100"}, label="x", is_detailed=True)
    text = msgspec.json.encode(content)
    again = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    theirs = json.loads((Path(__file__).parent / "vllm_0.33_result.json").read_text())
    assert set(theirs) <= set(again)
    assert again["gpu"] == "H100"
    assert again["ttfts"] == [0.05, 0.07, 0.0]
    assert again["errors"][2] == "503: full"
    assert again["output_lens"] == [4, 3, 0]


def test_the_result_has_the_usual_percentiles_of_everything(log: EventLog) -> None:
    content = result(log, summarise(log, Question()), Wording(metrics=("ttft",)), {})
    for name in METRICS:
        assert {"p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99.9_ms", "max_ms"} <= set(
            content["glimt"]["metrics"][name]
        )
    assert content["glimt"]["metrics"]["e2el_per_token"]["mean_ms"] == pytest.approx(
        (80 / 4 + 100 / 3) / 2
    )


def test_a_ramp_tells_when_each_rate_was_reached() -> None:
    requests = [request(k, start_ms=500 * k, at_ms=[500 * k + 20]) for k in range(5)]
    log = log_of(requests, ramp_up=("linear", 1, 3), end_ms=3000, date="20260101-000003")
    content = result(log, summarise(log, Question()), Wording(metrics=()), {})
    assert content["rps_change_events"] == [
        {"rps": 1, "timestamp": "2026-01-01T00:00:00"},
        {"rps": 2, "timestamp": "2026-01-01T00:00:01"},
        {"rps": 3, "timestamp": "2026-01-01T00:00:02"},
    ]


def test_times_that_the_server_tells_are_in_a_detailed_result(log: EventLog) -> None:
    wording = Wording(metrics=())
    content = result(log, summarise(log, Question()), wording, {}, is_detailed=True)
    assert "server_ttfts" not in content
    log.requests[1].server_ttft_ms = 12.0
    content = result(log, summarise(log, Question()), wording, {}, is_detailed=True)
    assert content["server_ttfts"] == [None, 0.012, None]


def test_input_tokens_can_be_those_of_texts(log: EventLog) -> None:
    for event in log.requests:
        event.text_tokens = 4
    told = table(log.start, summarise(log, Question(counts_texts=True)), Wording(metrics=()))
    assert "Total input tokens:                      8 " in told
    both = table(log.start, summarise(log, Question()), Wording(metrics=(), has_text_row=True))
    assert "Total input tokens:                      20" in both
    assert "Total input tokens of texts:             8 " in both


def test_results_can_be_appended_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.json"
    write_results(path, [{"a": 1}], append=True)
    write_results(path, [{"a": 2}], append=True)
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1, 2]
    write_results(path, [{"a": 3}], append=False)
    assert json.loads(path.read_text()) == {"a": 3}


def test_a_saved_log_gives_the_same_figures(log: EventLog, tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    write_log(path, [log, log])
    first, second = read_log(path)
    assert first == log == second
    wording = Wording(metrics=METRICS)
    again = table(first.start, summarise(first, Question()), wording)
    assert again == table(log.start, summarise(log, Question()), wording)


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense\n", b'{"event":"end","end_ns":1}\n', b'{"event":"start","format":"x"}\n'],
)
def test_a_file_that_is_no_whole_log_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadSettings, match=r"raw\.jsonl"):
        read_log(path)


def test_a_log_that_was_cut_off_is_refused(log: EventLog, tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    write_log(path, [log])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(BadSettings, match="ends before its run"):
        read_log(path)


def test_the_command_reports_a_saved_log(log: EventLog, tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    write_log(path, [log])
    command = [sys.executable, "-m", "glimt", "bench", "report", str(path)]
    command += ["--vllm-compat", "--metric-percentiles", "99,99.9", "--goodput", "ttft:60"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == OF_VLLM_0_12
