"""Several loads in one command: sweeps over given values, and the highest rate that still does."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from glimt.bench.options import Options
from glimt.errors import BadSettings


@dataclass(frozen=True)
class Sweep:
    """Which option takes which values."""

    varied: str  # rate or concurrency
    values: tuple[float, ...]

    @classmethod
    def parse(cls, texts: list[str]) -> "Sweep":
        """From `rate=1,2,4` or `concurrency=1,8`. Raises BadSettings."""
        name, _, values = ",".join(texts).partition("=")
        try:
            numbers = tuple(float(value) for value in values.split(",") if value.strip())
        except ValueError:
            numbers = ()
        is_whole = all(number == int(number) for number in numbers if math.isfinite(number))
        if name not in ("rate", "concurrency") or not numbers or min(numbers) <= 0:
            raise BadSettings(
                f"--sweep {' '.join(texts)}: must be rate=1,2,4 or concurrency=1,8,64"
            )
        if name == "concurrency" and not (is_whole and all(map(math.isfinite, numbers))):
            raise BadSettings("--sweep concurrency: must be whole numbers")
        return cls(name, numbers)

    def options(self, options: Options) -> Iterator[Options]:
        """The command's options at each value."""
        for value in self.values:
            if self.varied == "rate":
                yield with_rate(options, value)
            else:
                load = replace(options.load, max_concurrency=int(value))
                yield replace(options, load=load)


def with_rate(options: Options, rate: float) -> Options:
    """The same at another rate."""
    return replace(options, load=replace(options.load, request_rate=rate))


def highest(
    low: float, high: float, precision: float, does: Callable[[float], bool]
) -> float | None:
    """The highest rate between the bounds for which `does` holds, to a relative precision.

    Assumes that what does not at one rate does not at a higher one. Doubles until it fails, then
    halves the interval in logarithm. None if not even `low` does.
    """
    if not does(low):
        return None
    good, bad = low, low
    while bad < high:
        bad = min(good * 2, high)
        if not does(bad):
            break
        good = bad
    else:
        return good
    while bad / good > 1 + precision:
        middle = math.sqrt(good * bad)
        if does(middle):
            good = middle
        else:
            bad = middle
    return good
