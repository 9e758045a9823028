"""`glimt bench`: the commands. Options are declared in `options.py`."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from glimt.bench import outputs, settings
from glimt.bench.events import read_log
from glimt.bench.options import (
    DataOptions,
    FigureOptions,
    LoadOptions,
    Options,
    OutputOptions,
    SamplingOptions,
    TargetOptions,
)
from glimt.bench.run import Bench

app = App(
    name="bench",
    help="Measure a server.",
    default_parameter=Parameter(negative="", consume_multiple=False),
)


@app.command
def serve(
    *,
    target: Annotated[TargetOptions, Parameter(name="*")] = TargetOptions(),
    load: Annotated[LoadOptions, Parameter(name="*")] = LoadOptions(),
    data: Annotated[DataOptions, Parameter(name="*")] = DataOptions(),
    sampling: Annotated[SamplingOptions, Parameter(name="*")] = SamplingOptions(),
    figures: Annotated[FigureOptions, Parameter(name="*")] = FigureOptions(),
    output: Annotated[OutputOptions, Parameter(name="*")] = OutputOptions(),
) -> int:
    """Send requests to a running server and report how it did.

    Options, table and JSON are those of `vllm bench serve`; docs/benchmarking.md says where the
    definitions are better.
    """
    options = Options(
        target=target, load=load, data=data, sampling=sampling, figures=figures, output=output
    )
    for note in settings.check(options):
        _say(f"note: {note}")
    bench = Bench(options, _say)
    runs = outputs.evaluate([bench.run(options)], settings.question(options))
    outputs.write(options, runs, _say, print)
    return 0 if any(run.summary.completed for run in runs) else 1


@app.command
def report(
    raw: str,
    /,
    *,
    figures: Annotated[FigureOptions, Parameter(name="*")] = FigureOptions(),
    output: Annotated[OutputOptions, Parameter(name="*")] = OutputOptions(),
) -> int:
    """Evaluate the event log RAW of an earlier run (--raw) again, with other questions if you like.

    Parameters
    ----------
    raw
        File that `glimt bench serve --raw` wrote.
    """
    options = Options(figures=figures, output=output)
    runs = outputs.evaluate(read_log(Path(raw)), settings.question(options))
    outputs.write(options, runs, _say, print)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
