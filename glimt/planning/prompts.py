"""Prompts that wait for a copy: a step computes as many of them as fit, up to `MOST_AT_ONCE`.

The number that waits when a step begins is a Markov chain: of n, j = min(n, most) are computed in
S(j) seconds, meanwhile Poisson(r S(j)) more arrive; when none waits, the copy has no prompts until
the next arrival, which begins alone. With Q the chances of going from n to m without such a pause:

    visits of n between two pauses            v (1 - Q) = (1, 0, 0, ...)
    a cost's sum from n until the next pause  (1 - Q) x = cost

Everything else are averages over v.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

MOST_AT_ONCE = 8  # larger batches gain little more
_STATES_PER_BATCH = 4  # longer queues than so many batches are cut off, of large ones than 2
_LARGE_BATCH = 16
_LEAST_STATES = 24
_PRECISE = 1e-6


@dataclass(frozen=True)
class PromptQueue:
    """`rate` prompts per second; `seconds[j - 1]` of a step that computes j of them."""

    rate: float
    seconds: tuple[float, ...]

    @property
    def load(self) -> float:
        """Share of the time that full batches would take; from 1 on the queue grows for ever."""
        return self.rate * self.seconds[-1] / len(self.seconds)

    @cached_property
    def cycle_s(self) -> float:
        """Mean time from the begin of one step with prompts to that of the next."""
        return self.mean_step_s + self._visits[0] / self.rate  # each pause is followed by 1

    @cached_property
    def mean_step_s(self) -> float:
        """Of a step with prompts."""
        return sum(p * self._seconds_of(n) for n, p in self._each)

    @property
    def busy(self) -> float:
        """Share of the time that such steps take."""
        return self.mean_step_s / self.cycle_s

    @property
    def waiting_s(self) -> float:
        """Mean time from a prompt's arrival to the begin of its step, by Little's law."""
        waiting = sum(
            p * self._seconds_of(n) * (n - self._batch(n) + self.rate * self._seconds_of(n) / 2)
            for n, p in self._each
        )
        return waiting / self.cycle_s / self.rate

    @property
    def own_step_s(self) -> float:
        """Mean time of the step that a prompt is computed in."""
        return self._per_prompt([self._seconds_of(n) for n, _ in self._each])

    @property
    def steps_behind(self) -> tuple[float, float]:
        """How many steps with prompts follow a prompt's own without a pause, and their seconds."""
        own_s = [self._seconds_of(n) for n, _ in self._each]
        counts = self._kept_going.solve([1.0] * len(own_s))
        sums = self._kept_going.solve(own_s)
        return (
            self._per_prompt([count - 1 for count in counts]),
            self._per_prompt([s - own for s, own in zip(sums, own_s, strict=True)]),
        )

    # -------------------------------------------------------------------------------- the chain

    def _batch(self, waiting: int) -> int:
        return min(waiting, len(self.seconds))

    def _seconds_of(self, waiting: int) -> float:
        return self.seconds[self._batch(waiting) - 1]

    @property
    def _num_states(self) -> int:
        batches = _STATES_PER_BATCH if len(self.seconds) <= _LARGE_BATCH else 2
        return max(_LEAST_STATES, batches * len(self.seconds))

    @cached_property
    def _kept_going(self) -> "Factors":
        """1 - Q, states 1, 2, … of prompts waiting; the last one stands for all beyond."""
        count = self._num_states
        arrivals = [poisson(self.rate * seconds, count) for seconds in self.seconds]
        rows = []
        for n in range(1, count + 1):
            row = [0.0] * (count + 1)
            left = n - self._batch(n)
            for more, likely in enumerate(arrivals[self._batch(n) - 1]):
                row[min(left + more, count)] -= likely
            row[n] += 1
            rows.append(row[1:])
        return Factors(rows)

    @cached_property
    def _visits(self) -> list[float]:
        """By state, as shares of all steps with prompts; the first of them begins a run."""
        visits = self._kept_going.solve_left([1.0] + [0.0] * (self._num_states - 1))
        return [1 / sum(visits), *(value / sum(visits) for value in visits)]

    @property
    def _each(self) -> list[tuple[int, float]]:
        """(waiting at a step's begin, its share of the steps)."""
        return list(enumerate(self._visits[1:], 1))

    def _per_prompt(self, values: Sequence[float]) -> float:
        """Mean over prompts of a value of their step."""
        prompts = [p * self._batch(n) for n, p in self._each]
        return sum(a * b for a, b in zip(prompts, values, strict=True)) / sum(prompts)


class Factors:
    """A matrix as lower x upper triangle, found once for all that is solved with it. A chain that
    ends has rows dominated by their diagonal, so no pivot is looked for."""

    def __init__(self, rows: list[list[float]]) -> None:
        """`rows` are given away."""
        self._pivots: list[float] = []
        self._right: list[list[float]] = []  # of each row, what stands right of its pivot, over it
        self._below: list[list[tuple[int, float]]] = []  # of each column, what is not 0 below it
        for first, pivot_row in enumerate(rows):
            pivot = pivot_row[first]
            tail = [value / pivot for value in pivot_row[first + 1 :]]
            below = [(n, rows[n][first]) for n in range(first + 1, len(rows)) if rows[n][first]]
            for n, factor in below:
                rest = rows[n]
                rest[first + 1 :] = [
                    a - factor * b for a, b in zip(rest[first + 1 :], tail, strict=True)
                ]
            self._pivots.append(pivot)
            self._right.append(tail)
            self._below.append(below)

    def solve(self, sides: Sequence[float]) -> list[float]:
        """x of matrix x = sides."""
        x = list(sides)
        for n, pivot in enumerate(self._pivots):
            x[n] /= pivot
            for later, factor in self._below[n]:
                x[later] -= factor * x[n]
        for n in reversed(range(len(x))):
            x[n] -= sum(a * b for a, b in zip(self._right[n], x[n + 1 :], strict=True))
        return x

    def solve_left(self, sides: Sequence[float]) -> list[float]:
        """x of x matrix = sides."""
        x = list(sides)
        for n, tail in enumerate(self._right):
            x[n + 1 :] = [a - x[n] * b for a, b in zip(x[n + 1 :], tail, strict=True)]
        for n in reversed(range(len(x))):
            known = sum(factor * x[later] for later, factor in self._below[n])
            x[n] = (x[n] - known) / self._pivots[n]
        return x


def poisson(mean: float, most: int) -> list[float]:
    """Chances of 0, 1, … events; those beyond `most`, and the unlikely end, lie on the last."""
    chances, total = [math.exp(-mean)], math.exp(-mean)
    while total < 1 - _PRECISE and len(chances) < most:
        chances.append(chances[-1] * mean / len(chances))
        total += chances[-1]
    chances[-1] += max(0.0, 1 - total)
    return chances
