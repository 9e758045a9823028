"""Pairs of runs, one of each client, and what they say of the difference between the clients.

The difference of a pair has no part in what both runs share (the prompts, the times, the server,
how busy the machine was in that half minute), and pairs are independent of each other: their mean
has Student's interval. The clients agree if it lies within 2 % + 1 ms: not if no difference is
proven (that would reward noise), but if a larger one is excluded (two one-sided tests, Schuirmann
1987, here at 2.5 % each).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from glimt.bench.figures.statistics import Interval, confidence

Result = dict[str, Any]

MEANS = {
    "mean_ttft_ms": "TTFT",
    "mean_tpot_ms": "TPOT",
    "mean_itl_ms": "ITL",
    "mean_e2el_ms": "E2EL",
}
TOTALS = ("completed", "failed", "total_input_tokens", "total_output_tokens")


@dataclass(frozen=True)
class Difference:
    """One figure of both clients, in ms; `interval` is of Glimt's less vLLM's."""

    vllm: float
    glimt: float
    interval: Interval
    allowed: float

    @classmethod
    def of(cls, vllm: Sequence[float], glimt: Sequence[float], whole: float) -> "Difference":
        """Of the runs of each; run k of one is paired with run k of the other.

        Allowed are 2 % of `whole`, the mean of which this is a part, and 1 ms.
        """
        change = confidence([b - a for a, b in zip(vllm, glimt, strict=True)])
        return cls(mean(vllm), mean(glimt), change, 0.02 * whole + 1)

    @property
    def is_within(self) -> bool:
        """Whether the means agree."""
        return abs(self.interval.mean) <= self.allowed

    @property
    def is_certain(self) -> bool:
        """Whether all that the interval holds would be agreement, or all of it disagreement."""
        low, high = self.interval.low, self.interval.high
        if self.is_within:
            return -self.allowed <= low and high <= self.allowed
        return self.allowed < low or high < -self.allowed

    @property
    def change(self) -> str:
        """Mean and half of the interval's width."""
        return f"{self.interval.mean:+.2f} ± {self.interval.half:.2f}"

    def __str__(self) -> str:
        mark = ("" if self.is_within else " ✗") + ("" if self.is_certain else " ?")
        return f"{self.plain}{mark}"

    @property
    def plain(self) -> str:
        """Without a judgement."""
        return f"{self.vllm:.2f} · {self.glimt:.2f}: {self.change}"


@dataclass(frozen=True)
class Verdict:
    """All pairs of one load."""

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


def means_table(verdicts: Sequence[Verdict]) -> str:
    """Markdown: a row for each load, a column for each figure."""
    lines = [f"| load | pairs | tokens in + out | {' | '.join(MEANS.values())} |", "|---" * 7 + "|"]
    for each in verdicts:
        run = each.glimt[0]
        tokens = f"{run['total_input_tokens']:,} + {run['total_output_tokens']:,}"
        cells = " | ".join(map(str, each.means().values()))
        lines.append(f"| {each.name} | {len(each.glimt)} | {tokens} | {cells} |")
    return "\n".join(lines)


def wire_table(verdicts: Sequence[Verdict]) -> str:
    """Markdown: the server's part of TTFT and E2EL, and the clients' part of each figure."""
    shown = ("mean_ttft_ms", "mean_e2el_ms")
    heads = [f"{MEANS[key]} on the wire" for key in shown]
    heads += [f"{MEANS[key]}, added" for key in verdicts[0].added()]
    lines = [f"| load | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for each in verdicts:
        on_wire = each.on_wire()
        parts = [on_wire[key].plain for key in shown] + [str(one) for one in each.added().values()]
        lines.append(f"| {each.name} | {' | '.join(parts)} |")
    return "\n".join(lines)


def conclusions(verdicts: Sequence[Verdict]) -> tuple[list[str], bool]:
    """(sentences, whether totals and means agree)."""
    unequal = [f"{each.name}: {what}" for each in verdicts for what in each.unequal()]
    lines = [f"DISAGREES: {line}" for line in unequal] or ["Token totals are equal in all runs."]
    means = [(each.name, MEANS[key], one) for each in verdicts for key, one in each.means().items()]
    lines += [
        f"{'DISAGREES' if one.is_certain else 'OPEN, the runs differ too much'}: "
        f"{name}: {figure} {one}, allowed {one.allowed:.2f}"
        for name, figure, one in means
        if not one.is_within
    ]
    lines.append(f"Means within 2 % + 1 ms: {_shares([one for *_, one in means])}.")
    if added := [one for each in verdicts for one in each.added().values()]:
        lines.append(f"What the clients add, within the same: {_shares(added)}.")
    return lines, not unequal and all(one.is_within for *_, one in means)


def _shares(found: Sequence[Difference]) -> str:
    within = [one for one in found if one.is_within]
    certain = sum(one.is_certain for one in within)
    return f"{len(within)} of {len(found)}, {certain} of them with their whole 95 % interval"
