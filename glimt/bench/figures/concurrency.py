"""How many requests were in flight at each moment, and when the load was steady."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """A step function: from `at_ns[i]` on, `level[i]` requests are in flight."""

    at_ns: IntArray
    level: IntArray

    def peak(self) -> int:
        """The most at any moment."""
        return int(self.level.max(initial=0))

    def median(self) -> int:
        """The level below and above which half of the time passes, from first to last change."""
        lasts = np.diff(self.at_ns)
        order = np.argsort(self.level[:-1], kind="stable")
        passed = np.cumsum(lasts[order])
        half = int(np.searchsorted(passed, passed[-1] / 2)) if len(passed) else 0
        return int(self.level[order[half]]) if len(passed) else 0

    def mean(self, start_ns: int, end_ns: int) -> float:
        """The average over time."""
        if end_ns <= start_ns or len(self.at_ns) == 0:
            return 0.0
        edges = np.clip(np.append(self.at_ns, max(end_ns, int(self.at_ns[-1]))), start_ns, end_ns)
        return float(np.diff(edges) @ self.level) / (end_ns - start_ns)


def sweep(starts_ns: IntArray, ends_ns: IntArray) -> Steps:
    """Requests in flight, from their starts and ends. At one moment, ends come before starts."""
    at_ns = np.concatenate((starts_ns, ends_ns)).astype(np.int64)
    change = np.concatenate((np.ones(len(starts_ns), int), -np.ones(len(ends_ns), int)))
    order = np.lexsort((change, at_ns))
    at_ns, level = at_ns[order], np.cumsum(change[order])
    is_last = np.append(np.diff(at_ns) > 0, True) if len(at_ns) else np.zeros(0, bool)
    return Steps(at_ns[is_last], level[is_last])


def steady_window(steps: Steps, ratio: float) -> tuple[int, int] | None:
    """From the first to the last moment with at least `ratio` of the usual concurrency.

    Usual is the median over time: a peak is an accident of the arrivals. So the start, while the
    load builds up, and the end, while the last answers drain, are left out. None without requests.
    """
    if len(steps.at_ns) < 2:
        return None
    wanted = max(ratio * steps.median(), 1)
    high = np.flatnonzero(steps.level >= wanted)
    if len(high) == 0:
        return None
    start, end = int(steps.at_ns[high[0]]), int(steps.at_ns[high[-1] + 1])
    return (start, end) if end > start else None


def peak_rate(at_ns: IntArray, counts: IntArray, window_ns: int) -> float:
    """Most tokens in any window of the given width, per second."""
    if len(at_ns) == 0 or window_ns <= 0:
        return 0.0
    order = np.argsort(at_ns, kind="stable")
    at_ns, total = at_ns[order], np.concatenate(([0], np.cumsum(counts[order])))
    ends = np.searchsorted(at_ns, at_ns + window_ns, side="left")
    return float((total[ends] - total[:-1]).max()) / (window_ns / 1e9)


def vllm_peaks(starts_s: FloatArray, ends_s: FloatArray, tokens_s: FloatArray) -> tuple[float, int]:
    """(peak tokens/s, peak concurrency) as vLLM's client counts them: by whole seconds.

    Seconds count from the earliest start; each request touches every second from its start's to
    its end's, so that requests one after the other look concurrent.
    """
    if len(starts_s) == 0:
        return 0.0, 0
    first = starts_s.min()
    size = int(np.ceil(ends_s.max() - first)) + 1
    seconds = (tokens_s - first).astype(int)
    tokens = np.bincount(seconds[(seconds >= 0) & (seconds < size)], minlength=size)
    touched = np.zeros(size + 1, int)
    np.add.at(touched, (starts_s - first).astype(int), 1)
    np.add.at(touched, (ends_s - first).astype(int) + 1, -1)
    return float(tokens.max()), int(np.cumsum(touched).max())
