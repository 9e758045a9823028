"""`glimt bench ceiling`: what this client can measure on this machine, before it measures itself.

The client runs against a server that costs next to nothing (`noop.py`), once with answers of one
token and once with long streams. What comes out is the load up to which it can be believed.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from glimt.bench.figures.question import Question
from glimt.bench.figures.summary import Summary, summarise
from glimt.bench.options import (
    CeilingOptions,
    DataOptions,
    LoadOptions,
    Options,
    OutputOptions,
    SamplingOptions,
    TargetOptions,
)
from glimt.bench.run import Bench
from glimt.errors import BadSettings

Say = Callable[[str], None]


@contextmanager
def noop_server() -> Iterator[str]:
    """The address of a no-op server in a process of its own."""
    command = [sys.executable, "-m", "glimt.bench.noop"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if process.stdout is None or process.stdin is None:
        raise RuntimeError("the server has no pipes")
    try:
        url = process.stdout.readline().strip()
        if not url:
            raise BadSettings("the no-op server did not start; see its error above")
        yield url
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def ceiling(wishes: CeilingOptions, tell: Say) -> int:
    """Measure and print. Raises BadSettings."""
    with noop_server() as url:
        options = _options(url, wishes)
        short = _best(options, wishes)
        long = replace(
            options,
            load=replace(options.load, num_prompts=wishes.streams),
            data=replace(options.data, random_output_len=wishes.tokens),
        )
        streamed = _best(long, wishes)
    median_us = short.metrics["ttft"].median * 1e6
    tell(f"{short.request_throughput:,.0f} requests/s of one token, {wishes.streams} at a time")
    tell(f"    processor time: {short.client.cpu:.0%} of a core, TTFT {median_us:,.0f} us (median)")
    tell(f"{streamed.output_throughput:,.0f} chunks/s over {wishes.streams} streams")
    tell(
        f"    processor time: {streamed.client.cpu:.0%} of a core, "
        f"{streamed.client.cpu / max(streamed.output_throughput, 1) * 1e6:.1f} us a chunk, "
        f"{streamed.outputs.chunks / max(streamed.outputs.reads, 1):.2f} chunks a read"
    )
    return 0


def _options(url: str, wishes: CeilingOptions) -> Options:
    return Options(
        target=TargetOptions(
            backend="openai-chat",
            endpoint="/v1/chat/completions",
            base_url=url,
            skip_tokenizer_init=True,
        ),
        load=LoadOptions(
            num_prompts=wishes.requests, max_concurrency=wishes.streams, workers=wishes.workers
        ),
        data=DataOptions(random_input_len=8, random_output_len=1),
        sampling=SamplingOptions(temperature=0),
        output=OutputOptions(disable_tqdm=False),
    )


def _best(options: Options, wishes: CeilingOptions) -> Summary:
    """The fastest of several runs."""
    bench = Bench(options, lambda _: None)  # of each run's prompts there is nothing to say
    runs = [summarise(bench.run(options, repeat), Question()) for repeat in range(wishes.repeats)]
    if failed := sum(run.failed for run in runs):
        raise BadSettings(f"{failed} requests to the no-op server failed: {runs[0].errors}")
    return max(runs, key=lambda run: run.output_throughput)
