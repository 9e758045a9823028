"""`glimt bench serve`: one run, repeats, a sweep or a search, and what is written of them.

What evaluates a run is imported after it.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from glimt.bench import settings
from glimt.bench.figures.loads import keeps
from glimt.bench.options import Options
from glimt.bench.run import Bench
from glimt.bench.search import Sweep, highest, with_rate

if TYPE_CHECKING:
    from glimt.bench.early import EarlyStop
    from glimt.bench.events import EventLog
    from glimt.bench.outputs import Run

Say = Callable[[str], None]

INTERRUPTED = 130  # the exit status of what was ended by Ctrl-C: 128 + SIGINT


def run_all(options: Options, say: Say, tell: Say) -> int:
    """Run what is asked for; tables go to `tell`, everything else to `say`.

    Returns 0; 1 if no request succeeded, or if the search found no rate; 130 if the user ended it
    before its end. Raises BadSettings.
    """
    notes = settings.check(options)
    if len(files := options.output.compare or []) == 2:
        from glimt.bench.compare import compare_files

        question = settings.question(options)
        compare_files(files[0], files[1], question, options.output.html, say, tell)
        return 0
    for note in notes:
        say(f"note: {note}")
    command = _Command(options, say, tell)
    search = options.search
    if search.find_max_rate:
        return command.find_max_rate()
    if search.sweep is not None:
        sweep = Sweep.parse(search.sweep)
        for each in sweep.options(options):
            command.run(each)
        return command.finish(varied=sweep.varied)
    command.run(options)
    return command.finish()


class _InterruptedSearch(Exception):
    """What was found so far is no result."""


class _Command:
    """The runs of one command, as they are made."""

    def __init__(self, options: Options, say: Say, tell: Say) -> None:
        self._options = options
        self._say = say
        self._tell = tell
        self._before: list[EventLog] = []
        if options.output.compare:
            from glimt.bench import outputs

            self._before = outputs.compared_with(options)
        self._bench = Bench(options, say)
        self._question = settings.question(options)
        self._objectives = self._question.objectives
        self._runs: list[Run] = []

    def run(self, options: Options) -> None:
        """All repeats of one load."""
        for repeat in range(options.load.repeats):
            if not self._is_interrupted:
                self._run(options, repeat)

    @property
    def _is_interrupted(self) -> bool:
        return bool(self._runs) and self._runs[-1].log.end.is_interrupted

    def _run(self, options: Options, repeat: int, early: "EarlyStop | None" = None) -> "Run":
        """One run, shown when it is done; `early` may end it."""
        log = self._bench.run(options, repeat, early)
        from glimt.bench import outputs

        (run,) = outputs.evaluate([log], self._question)
        outputs.show(options, run, self._say, self._tell)
        self._runs.append(run)
        return run

    def find_max_rate(self) -> int:
        """Search, with every run of it in what is written."""
        search = self._options.search

        def does(rate: float) -> bool:
            """Whether all repeats keep the objectives; after one that does not, no more are run."""
            options = with_rate(self._options, rate)
            kept = all(
                keeps(self._run(options, repeat, self._early(rate)).summary, self._objectives)
                for repeat in range(options.load.repeats)
            )
            if self._is_interrupted:
                raise _InterruptedSearch
            self._say(f"{rate:.3g} requests/s: objectives {'kept' if kept else 'missed'}")
            return kept

        try:
            found = highest(search.search_low, search.search_high, search.search_precision, does)
        except _InterruptedSearch:
            return self.finish(varied="rate")
        status = self.finish(varied="rate")
        if found is None:
            self._tell(f"Not even {search.search_low:g} requests/s keep the objectives.")
            return 1
        if any(
            run.summary.client.doubts for run in self._runs if run.log.start.request_rate == found
        ):
            self._say("note: at that rate the client did not keep up; see NOT TRUSTWORTHY above")
        is_bound = found == search.search_high
        more = ", where the search ends; try a higher --search-high" if is_bound else ""
        self._tell(f"Highest rate that keeps the objectives: {found:.3g} requests/s{more}")
        return status

    def _early(self, rate: float) -> "EarlyStop | None":
        """What ends a probe of the search when its verdict is clear; None: nothing does."""
        load = self._options.load
        if self._options.search.search_whole_runs or load.workers > 1:
            return None
        from glimt.bench.early import EarlyStop

        count = load.num_prompts if load.duration is None else math.ceil(rate * load.duration)
        return EarlyStop(self._objectives, count * self._options.data.turns)

    def finish(self, *, varied: str | None = None) -> int:
        """Write everything; the exit status."""
        from glimt.bench import outputs

        outputs.write(
            self._options, self._runs, self._say, self._tell, varied=varied, before=self._before
        )
        if self._is_interrupted:
            return INTERRUPTED
        return 0 if any(run.summary.completed for run in self._runs) else 1
