"""Rounds of runs, and what they say of the difference between the clients.

A round is A B B A or B A A B: two pairs, one of each client. The difference of a pair has no part
in what both runs share (the prompts, the times, the server, how busy the machine was just then),
and a slow drift cancels out between the two. The mean over pairs has Student's interval, and the
answer is one of three: the clients *agree* if all of it lies within 2 % + 1 ms (not if no
difference is proven, which would reward noise, but if a larger one is excluded: two one-sided
tests, Schuirmann 1987, here at 2.5 % each), they *differ* if all of it lies beyond, and else the
runs leave it *undecided*.

How much the same client differs from itself in the same rounds is the noise floor: it tells
whether an undecided figure wants more runs or a quieter machine.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, Literal

from glimt.bench.figures.statistics import Interval, confidence, student_quantile

Result = dict[str, Any]
Answer = Literal["agree", "differ", "undecided"]

MEANS = {
    "mean_ttft_ms": "TTFT",
    "mean_tpot_ms": "TPOT",
    "mean_itl_ms": "ITL",
    "mean_e2el_ms": "E2EL",
}
TOTALS = ("completed", "failed", "total_input_tokens", "total_output_tokens")
_MARKS: dict[Answer, str] = {"agree": "", "differ": " ✗", "undecided": " ?"}


@dataclass(frozen=True)
class Difference:
    """One figure of both clients, in ms.

    `interval` is of Glimt's less vLLM's. `floor` is half of the interval that a client has against
    itself, about zero: there is no difference but chance and drift.
    """

    vllm: float
    glimt: float
    interval: Interval
    floor: float
    allowed: float

    @classmethod
    def of(cls, vllm: Sequence[float], glimt: Sequence[float], whole: float) -> "Difference":
        """Of the runs of each, in their order: two of each client a round.

        Allowed are 2 % of `whole`, the mean of which this is a part, and 1 ms.
        """
        change = confidence([b - a for a, b in zip(vllm, glimt, strict=True)])
        again = [
            later - first
            for side in (vllm, glimt)
            for first, later in zip(side[::2], side[1::2], strict=True)
        ]
        return cls(mean(vllm), mean(glimt), change, _about_zero(again), 0.02 * whole + 1)

    @property
    def answer(self) -> Answer:
        """What the interval says."""
        low, high = self.interval.low, self.interval.high
        if -self.allowed <= low and high <= self.allowed:
            return "agree"
        if self.allowed < low or high < -self.allowed:
            return "differ"
        return "undecided"

    @property
    def pairs_wanted(self) -> float:
        """How many pairs would decide that they agree, if all stays as it is; else infinity."""
        room = self.allowed - abs(self.interval.mean)
        if room <= 0:
            return math.inf
        return self.interval.count * (self.interval.half / room) ** 2

    @property
    def change(self) -> str:
        """Mean and half of the interval's width."""
        return f"{self.interval.mean:+.2f} ± {self.interval.half:.2f}"

    def __str__(self) -> str:
        return f"{self.plain}{_MARKS[self.answer]}"

    @property
    def plain(self) -> str:
        """Without a judgement."""
        return f"{self.vllm:.2f} · {self.glimt:.2f}: {self.change}"


def _about_zero(values: Sequence[float]) -> float:
    """Half of Student's 95 % interval of a mean that is known to be zero."""
    count = len(values)
    error = math.sqrt(sum(value**2 for value in values) / count / count)
    return student_quantile(0.975, count) * error


@dataclass(frozen=True)
class Verdict:
    """All runs of one load, two of each client a round."""

    name: str
    vllm: list[Result]
    glimt: list[Result]

    def means(self) -> dict[str, Difference]:
        """Of each figure what the clients say."""
        return {key: self._difference(key, lambda run, key: run[key]) for key in MEANS}

    def on_wire(self) -> dict[str, Difference]:
        """What passed on the wire, which is the server's part; empty if nobody looked."""
        return {
            key: self._difference(key, lambda run, key: run["wire"][key]) for key in self._watched()
        }

    def added(self) -> dict[str, Difference]:
        """What the clients say beyond what was on the wire in the same run."""
        return {
            key: self._difference(key, lambda run, key: run[key] - run["wire"][key])
            for key in self._watched()
        }

    def unequal(self) -> list[str]:
        """Totals that are not the same in all runs of both clients."""
        found = []
        for key in TOTALS:
            sides = [sorted({run[key] for run in side}) for side in (self.vllm, self.glimt)]
            if sides[0] != sides[1] or len(sides[0]) > 1:
                found.append(f"{key} {sides[0]} and {sides[1]}")
        return found

    def _watched(self) -> list[str]:
        return [*self.glimt[0].get("wire", ())]

    def _difference(self, key: str, figure: Callable[[Result, str], float]) -> Difference:
        sides = [[figure(run, key) for run in side] for side in (self.vllm, self.glimt)]
        return Difference.of(*sides, mean([run[key] for run in self.vllm]))


def answer(verdicts: Sequence[Verdict]) -> Answer:
    """Of all totals and means together."""
    found = {one.answer for each in verdicts for one in each.means().values()}
    if "differ" in found or any(each.unequal() for each in verdicts):
        return "differ"
    return "undecided" if "undecided" in found else "agree"
