"""`glimt bench`: the commands. Options are declared in `options.py`.

What a command needs is imported in it, so that the client starts fast.
"""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Group, Parameter

from glimt.bench.options import (
    CeilingOptions,
    DataOptions,
    FigureOptions,
    LoadOptions,
    Options,
    OutputOptions,
    SamplingOptions,
    SearchOptions,
    TargetOptions,
    WatchOptions,
    flags_of,
)
from glimt.bench.unknown import explain

_FILE = Group.create_ordered("Where options can come from, too")

app = App(
    name="bench",
    help="Measure a server.",
    default_parameter=Parameter(negative="", consume_multiple=False),
    error_formatter=explain,
)


@app.command
def serve(
    *,
    config: Annotated[str | None, Parameter(group=_FILE)] = None,
    target: Annotated[TargetOptions, flags_of(TargetOptions)] = TargetOptions(),
    load: Annotated[LoadOptions, flags_of(LoadOptions)] = LoadOptions(),
    data: Annotated[DataOptions, flags_of(DataOptions)] = DataOptions(),
    sampling: Annotated[SamplingOptions, flags_of(SamplingOptions)] = SamplingOptions(),
    watch: Annotated[WatchOptions, flags_of(WatchOptions)] = WatchOptions(),
    figures: Annotated[FigureOptions, flags_of(FigureOptions)] = FigureOptions(),
    output: Annotated[OutputOptions, flags_of(OutputOptions)] = OutputOptions(),
    search: Annotated[SearchOptions, flags_of(SearchOptions)] = SearchOptions(),
) -> int:
    """Send requests to a running server and report how it did.

    Options, table and JSON are those of `vllm bench serve`; docs/benchmarking.md says where the
    definitions are better.

    Parameters
    ----------
    config
        TOML file with any of these options under [bench.serve].
    """
    from glimt.bench.serve import run_all

    options = Options(
        target=target,
        load=load,
        data=data,
        sampling=sampling,
        watch=watch,
        figures=figures,
        output=output,
        search=search,
    )
    return run_all(options, _say, print)


@app.command
def report(
    raw: str | None = None,
    /,
    *,
    figures: Annotated[FigureOptions, flags_of(FigureOptions)] = FigureOptions(),
    output: Annotated[OutputOptions, flags_of(OutputOptions)] = OutputOptions(),
) -> int:
    """Evaluate the event log RAW of an earlier run (--raw) again, with other questions if you like.

    Parameters
    ----------
    raw
        File that `glimt bench serve --raw` wrote; not with --compare BEFORE AFTER.
    """
    from glimt.bench import outputs, settings
    from glimt.bench.events import read_log
    from glimt.bench.report.series import varied_by

    options = Options(figures=figures, output=output)
    settings.check_report(options, raw)
    if raw is None:
        before, after = output.compare or []
        return compare(before, after, figures=figures, html=output.html)
    earlier = outputs.compared_with(options)
    runs = outputs.evaluate(read_log(Path(raw)), settings.question(options))
    for run in runs:
        outputs.show(options, run, _say, print)
    outputs.write(
        options, runs, _say, print, varied=varied_by([run.log for run in runs]), before=earlier
    )
    return 0


@app.command
def compare(
    before: str,
    after: str,
    /,
    *,
    figures: Annotated[FigureOptions, flags_of(FigureOptions)] = FigureOptions(),
    html: str | None = None,
) -> int:
    """What changed from BEFORE to AFTER: event logs (--raw), or results with --save-detailed.

    Results of vLLM's client will do. Repeats of both sides are paired, and so are the requests of
    single runs, if they were the same.

    Parameters
    ----------
    before
        Log or result of the first side.
    after
        Log or result of the second side.
    html
        Write the comparison as a page.
    """
    from glimt.bench import settings
    from glimt.bench.compare import compare_files

    question = settings.question(Options(figures=figures))
    compare_files(before, after, question, html, _say, print)
    return 0


@app.command
def ceiling(
    *, wishes: Annotated[CeilingOptions, flags_of(CeilingOptions)] = CeilingOptions()
) -> int:
    """Measure this client against a server that costs nothing: how much load can it measure?"""
    from glimt.bench.ceiling import ceiling as measure

    return measure(wishes, print)


for _name, _help in (
    ("latency", "Time one batch of equal prompts, again and again, without a server."),
    ("throughput", "Time all prompts at once, without a server."),
    ("startup", "Start `glimt serve` several times and take the time to ready apart."),
    ("mm", "Time what the pictures of a workload cost a media worker, stage by stage."),
):
    app.command(f"glimt.bench.offline.command:{_name}", name=_name, help=_help)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
