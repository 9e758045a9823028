"""One run after another against one server: from options to event logs."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import uvloop

from glimt.bench import settings
from glimt.bench.data.source import prompts
from glimt.bench.data.tokens import Tokens, find_tokenizer
from glimt.bench.events import EventLog, RunEnd
from glimt.bench.load.bodies import BodyMaker
from glimt.bench.load.plan import Plan
from glimt.bench.load.prepare import Workload, prepare
from glimt.bench.load.runner import Early
from glimt.bench.load.session import Observed, Session
from glimt.bench.options import Options
from glimt.bench.provenance import provenance, without_value
from glimt.bench.report.progress import Live, RunLine, steps
from glimt.bench.target import find_target

Say = Callable[[str], None]

_WARMUP_SEED = 1_000_003  # added to the seed: warm-ups are other prompts than the run's


class Bench:
    """A server that was found, and the tokenizer for it; makes runs."""

    def __init__(self, options: Options, say: Say) -> None:
        """Find both. Raises BadSettings."""
        self._options = options
        self._say = say
        self.target = uvloop.run(find_target(options.target, os.environ.get("OPENAI_API_KEY")))
        if (unlisted := self.target.unlisted()) is not None:
            say(f"note: {unlisted}")
        self._tokens = self._find_tokens()
        self._provenance = provenance()

    def run(self, options: Options, repeat: int = 0, early: Early | None = None) -> EventLog:
        """One run of `options`, which may differ from the first in load and data.

        Each repeat has a seed of its own, for prompts and arrivals. `early` may end it.
        """
        plan = replace(self._plan(options, options.load.seed + repeat), early=early)
        session = Session(plan)
        total = None if options.load.duration else plan.workload.num_requests
        if options.output.disable_tqdm:
            observed = uvloop.run(session.run())
        else:
            with Live(RunLine(session.counters, total)):
                observed = uvloop.run(session.run())
        return self._log(plan, observed, repeat)

    def _find_tokens(self) -> Tokens | None:
        target = self._options.target
        if target.skip_tokenizer_init:
            return None
        names = [target.tokenizer] if target.tokenizer else [self.target.model_id, self.target.root]
        tokens, notes = find_tokenizer(names, is_wanted=target.tokenizer is not None)
        for note in notes:
            self._say(f"note: {note}")
        return tokens

    def _plan(self, options: Options, seed: int) -> Plan:
        maker = BodyMaker(
            options.target,
            options.sampling,
            self.target.model,
            ignore_eos=settings.ignores_eos(options),
        )
        workload = self._workload(options, maker, options.load.num_prompts, seed, "prompts")
        num_bytes = workload.store.num_bytes
        size = f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"
        self._say(f"{workload.num_requests} requests, {size}, digest {workload.digest}")
        return Plan(
            options=options,
            target=self.target,
            workload=workload,
            warmups=self._warmups(options, maker, workload, seed),
            probe_body=maker.probe(),
            arrivals=settings.arrivals(options),
            seed=seed,
        )

    def _workload(
        self, options: Options, maker: BodyMaker, num_prompts: int, seed: int, what: str
    ) -> Workload:
        is_shown = not options.output.disable_tqdm
        with steps(f"making {what}", num_prompts, is_shown=is_shown) as step:
            made = prompts(options.data, self._tokens, num_prompts, seed)
            return prepare(made, maker, options.target.backend, options.sampling, seed, step)

    def _warmups(
        self, options: Options, maker: BodyMaker, workload: Workload, seed: int
    ) -> Workload:
        """Other prompts of the same kind, so that no cache knows the run's; vLLM's client repeats
        the run's first request."""
        count = options.load.num_warmups
        if count == 0:
            return Workload()
        if options.figures.vllm_compat:
            first = msgspec.structs.replace(workload.jobs[0], later=())
            jobs = [msgspec.structs.replace(first, index=index) for index in range(count)]
            return Workload(store=workload.store, jobs=jobs)
        return self._workload(options, maker, count, seed + _WARMUP_SEED, "warm-ups")

    def _log(self, plan: Plan, observed: Observed, repeat: int) -> EventLog:
        tokenizer = str(self._tokens.path) if self._tokens else None
        date = datetime.now(UTC).astimezone().strftime("%Y%m%d-%H%M%S")
        start = settings.run_start(plan.options, date, self.target.model_id, tokenizer)
        start.repeat = repeat
        start.settings = plain(plan.options)
        start.provenance = {
            **self._provenance,
            "server": self.target.about,
            "workload": plan.workload.digest,
            "schedule": plan.timing.digest(plan.workload.jobs),
        }
        return EventLog(
            start=start,
            requests=observed.requests,
            health=observed.health,
            server=observed.server,
            power=observed.power,
            end=RunEnd(
                end_ns=observed.end_ns,
                notes=observed.notes,
                is_interrupted=observed.is_interrupted,
            ),
        )


def plain(options: Options) -> dict[str, Any]:
    """Options as JSON can hold them, without those at their defaults and what may be secret."""
    content = {}
    for group in dataclasses.fields(options):
        given, default = getattr(options, group.name), group.default
        for field in dataclasses.fields(given):
            value = getattr(given, field.name)
            if value != getattr(default, field.name):
                content[field.name] = str(value) if isinstance(value, float) else value
    if headers := options.target.header:
        content["header"] = [without_value(header) for header in headers]
    return content
