"""The live line: what a user sees while a benchmark runs."""

import json
import os
import pty
import termios
from collections.abc import Callable
from typing import Any

import pytest

from glimt.bench import run
from glimt.bench.load.bodies import DIALECTS
from glimt.bench.load.http import Exchange
from glimt.bench.load.outcome import told_error
from glimt.bench.load.runner import Counters
from glimt.bench.options import (
    Backend,
    DataOptions,
    LoadOptions,
    Options,
    SamplingOptions,
    TargetOptions,
)
from glimt.bench.report.progress import Live, RunLine
from tests.support.mock_server import MockServer


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


def test_the_line_is_cut_to_the_terminal_so_that_it_can_be_drawn_over() -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 40))
    with (
        open(slave, "w") as stream,
        Live(lambda _: "3 failed (" + "words of a server " * 9, stream),
    ):
        drawn = b""
        while drawn.count(b"\x1b[K") < 2:
            drawn += os.read(master, 4096)
    os.close(master)
    line = drawn.decode().split("\r\x1b[K")[1]
    assert line == ("3 failed (" + "words of a server " * 9)[:39]


@pytest.mark.parametrize(
    ("backend", "error", "words"),
    [
        ("openai-chat", {"error": {"message": "no room"}}, "no room"),
        ("vllm", {"error": {"message": "no room"}}, "no room"),
        ("openai-responses", {"type": "error", "error": {"message": "no room"}}, "no room"),
        ("openai-chat", {"choices": [{"delta": {"content": 'an "error": x'}}]}, ""),
        ("openai-responses", {"type": "response.completed", "response": {"error": None}}, ""),
    ],
)
def test_an_error_within_a_stream_is_seen_while_the_run_goes_on(
    backend: Backend, error: dict[str, Any], words: str
) -> None:
    reads = [(1, b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')] * 9
    last = f"data: {json.dumps(error)}\n\n".encode()
    exchange = Exchange(status=200, reads=[*reads, (2, last), (3, b"data: [DONE]\n\n")])
    assert told_error(exchange, DIALECTS[backend]) == words


def test_the_line_of_a_run_counts_streams_that_end_in_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched: list[RunLine] = []

    class Watched(RunLine):
        """A line that is looked at once more when the run is over."""

        def __init__(self, counters: Callable[[], list[Counters]], total: int | None) -> None:
            super().__init__(counters, total)
            watched.append(self)

    monkeypatch.setattr(run, "RunLine", Watched)
    server = MockServer("--ttft-ms", "1", "--gap-ms", "1")
    try:
        script = json.dumps({"script": {"end": "error", "end_after": 2}})
        options = Options(
            target=TargetOptions(
                backend="openai-chat",
                endpoint="/v1/chat/completions",
                base_url=server.url,
                skip_tokenizer_init=True,
            ),
            load=LoadOptions(num_prompts=3),
            data=DataOptions(random_input_len=5, random_output_len=6),
            sampling=SamplingOptions(extra_body=script),
        )
        run.Bench(options, lambda _: None).run(options)
    finally:
        server.stop()
    (line,) = watched
    assert "3 failed (scripted trouble)" in line(1.0)
