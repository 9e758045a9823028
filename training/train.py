"""`python -m training.train`: trains the built-in model from nothing to a checkpoint folder.

--out/checkpoint.pt   the run, to be resumed     --out/log.jsonl   losses and accuracies
--out/model/          the result, in the hub's format, as soon as the budget is spent
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from tokenizers import Tokenizer

from glimt.errors import BadSettings
from training import checkpoints
from training.batches import Feed, open_feed
from training.evaluate import evaluate
from training.export import export
from training.logbook import Logbook
from training.network import Batch
from training.options import Options, read_options
from training.replay import Replay
from training.restore import read_exported
from training.schedule import Clock, StepClock, TimeClock
from training.shape import Shape, make_shape, read_tokenizer
from training.smoke import smoke
from training.supply import Supply, Tally
from training.trainer import StepReport, Trainer


class Stop:
    """Ctrl-C or SIGTERM ends the run after the step at hand; a second Ctrl-C ends it at once."""

    def __init__(self, stop_after_s: float) -> None:
        self._deadline = time.monotonic() + stop_after_s
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("ending after this step", flush=True)

    @property
    def wanted(self) -> bool:
        """Whether this invocation shall end now."""
        return self._asked or time.monotonic() > self._deadline


class Run:
    """One invocation of the training loop."""

    def __init__(self, options: Options, stop: Stop) -> None:
        self.options = options
        self.stop = stop
        self.tokenizer: Tokenizer = read_tokenizer(options.tokenizer)
        self.shape: Shape = make_shape(options.preset, self.tokenizer)
        state = checkpoints.load(options.out / checkpoints.FILE) if options.resume else None
        self.feed: Feed = self._open_feed(state)
        self.trainer = Trainer(
            self.shape.config, options.device, options.recipe, compiled=options.compiled
        )
        if state is not None:
            self.trainer.load(state)
        elif options.init is not None:
            self.trainer.start_from(read_exported(options.init, self.shape.config))
        replay = Replay[Batch](options.replay_bytes, options.max_reuse, options.recipe.seed)
        self.supply = Supply(self.feed, replay, options.device, options.eval_samples)
        self.logbook = Logbook(options.out, fresh=state is None)
        self._evaluated_at = -1
        self._drawn: Sequence[Batch] | None = None  # of the next step
        self.clock = _clock(options, 0.0 if state is None else state["elapsed_s"])
        self._announce(resumed=state is not None)

    def _open_feed(self, state: dict[str, Any] | None) -> Feed:
        options = self.options
        if state is not None and state["config_json"] != self.shape.config_json:
            raise BadSettings(
                f"the checkpoint in {options.out} is of another network: give the --preset and "
                "--tokenizer that it was made with, or another --out"
            )
        seeds = {} if state is None else state["seeds"]
        return open_feed(
            options.source, options.budget, options.workers, options.eval_samples, seeds
        )

    def _announce(self, *, resumed: bool) -> None:
        trainer, options = self.trainer, self.options
        count = sum(
            parameter.numel()
            for name, parameter in trainer.network.named_parameters()
            if not name.startswith("sight.")  # not exported
        )
        print(
            f"{options.preset}: {count / 1e6:.2f} M parameters, {2 * count / 1e6:.1f} MB in BF16\n"
            f"device: {trainer.device}, {trainer.dtype}; {trainer.attention}\n"
            f"data: {options.source}, {options.workers} workers, micro-batches of "
            f"{options.budget.tokens} tokens and {options.budget.patches} patches, "
            f"{options.micro_batches} a step, each used {options.max_reuse} times at most"
        )
        if options.init is not None:
            print(f"weights of {options.init}, at {100 * options.begin:.0f} % of the schedule")
        if resumed:
            print(f"resuming after {self.clock.elapsed():.0f} s and {trainer.step} steps")
        print(flush=True, end="")

    def loop(self) -> bool:
        """Train until the budget is spent (True) or this invocation shall stop (False)."""
        if self.options.compiled:
            self._compile()
        checkpoint = Timer(self.options.checkpoint_every_s, self.save)
        evaluation = Timer(self.options.eval_every_s, self.evaluate)
        reports: list[StepReport] = []
        log = Timer(self.options.log_every_s, lambda: self._log(reports, log.seconds))
        while (progress := self.clock.progress(self.trainer.step)) < 1.0 and not self.stop.wanted:
            batches, self._drawn = self._drawn or self._draw(), None
            reports.append(self.trainer.train(batches, progress, self._draw_ahead))
            for timer in (log, evaluation, checkpoint):
                timer.check()
        if reports:
            self._log(reports, log.seconds)
        self.save()
        return self.clock.progress(self.trainer.step) >= 1.0

    def _draw(self) -> Sequence[Batch]:
        progress = self.clock.progress(self.trainer.step)
        return self.supply.draw(self.options.micro_batches, progress)

    def _draw_ahead(self) -> None:
        """Copying data takes the host a fifth of a step: a GPU computes in the meantime. On a
        CPU nothing would be won, and a run that is resumed would miss what was drawn."""
        if self.trainer.device.type == "cuda":
            self._drawn = self._draw()

    def _compile(self) -> None:
        """The first pass is the one that compiles; it is not part of the budget."""
        started = time.monotonic()
        self.trainer.rehearse(self.supply.draw(1, self.clock.progress(self.trainer.step))[0])
        print(f"compiled in {time.monotonic() - started:.0f} s", flush=True)
        self.clock.start()

    def evaluate(self) -> None:
        """Measure the averaged weights on the held-out set, once after each step."""
        if not self.options.eval_samples or self._evaluated_at == self.trainer.step:
            return
        self._evaluated_at = self.trainer.step
        held_out = self.supply.collect_held_out(self.clock.progress(self.trainer.step))
        self.trainer.use_average()
        accuracies = evaluate(self.trainer.network, held_out)
        self.trainer.use_current()
        self.logbook.accuracies(self.clock.elapsed(), self.trainer.step, accuracies)

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            **self.trainer.state(),
            "bias_names": self.trainer.balance.names,
            "config_json": self.shape.config_json,
            "elapsed_s": self.clock.elapsed(),
            "seeds": self.feed.seeds,
        }
        checkpoints.save(self.options.out, state)

    def export(self) -> None:
        """Write the model."""
        template = self.options.template.read_text("utf-8")
        out = self.options.out / "model"
        weights = self.trainer.exported()
        export(out, weights, self.shape.config_json, self.tokenizer, template)
        nbytes = sum(path.stat().st_size for path in out.iterdir())
        print(f"the model is in {out}: {nbytes / 1e6:.1f} MB", flush=True)

    def _log(self, reports: list[StepReport], seconds: float) -> None:
        if not reports:
            return
        self.logbook.steps(
            self.clock.elapsed(),
            self.trainer.step,
            seconds,
            reports,
            self.supply.tally,
            float(self.trainer.balance.imbalance()),
        )
        reports.clear()
        self.supply.tally = Tally()


class Timer:
    """Does something every so many seconds, when it is looked at."""

    def __init__(self, every_s: float, action: Callable[[], None]) -> None:
        self._every_s = every_s
        self._action = action
        self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was last done."""
        return max(time.monotonic() - self._last, 1e-9)

    def check(self) -> None:
        """Do it if it is time."""
        if self.seconds >= self._every_s:
            self._action()
            self._last = time.monotonic()


def _clock(options: Options, elapsed_s: float) -> Clock:
    if options.steps is not None:
        return StepClock(options.steps, elapsed_s, options.begin)
    return TimeClock(60.0 * options.minutes, elapsed_s, options.begin)


def train(options: Options, stop: Stop) -> None:
    """The whole command. Raises BadSettings, OSError, RuntimeError or ValueError."""
    if options.smoke:
        smoke(options)
        return
    run = Run(options, stop)
    try:
        if run.loop():
            run.evaluate()
            run.export()
        else:
            print(f"stopped after {run.clock.elapsed():.0f} s; go on with --resume", flush=True)
    finally:
        run.feed.close()


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 with one line if it cannot be done."""
    options = read_options(arguments)
    if options.workers:
        # They need the other cores; threads that wait for a core stall each small operation.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - options.workers))
    try:
        with Stop(options.stop_after_s) as stop:
            train(options, stop)
    except (BadSettings, OSError, RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
