"""The live line: what a user sees while a benchmark runs."""

from glimt.bench.load.http import Exchange
from glimt.bench.load.runner import Counters
from glimt.bench.report.progress import RunLine


def test_the_line_tells_rate_flight_tokens_first_bytes_and_failures() -> None:
    counters = Counters()
    line = RunLine(lambda: [counters], 100)
    counters.done, counters.in_flight, counters.events = 10, 4, 300
    counters.ttfts_ns.append(120_000_000)
    assert line(2.0) == "    2 s  10/100 done, 4 in flight, 5.00 req/s, ~150 tok/s, TTFT ~120 ms"
    counters.done, counters.failed, counters.last_error = 20, 1, "503: full"
    assert "1 failed (503: full)" in line(4.0)


def test_tokens_of_open_requests_count_and_rates_are_those_of_the_last_seconds() -> None:
    counters = Counters()
    line = RunLine(lambda: [counters], None)
    counters.open[0] = Exchange(num_events=50)
    assert "0 done, 0 in flight, 0.00 req/s, ~50 tok/s" in line(1.0)
    for second in range(2, 20):
        counters.open[0].num_events += 10
        text = line(float(second))
    assert "~10 tok/s" in text
