"""ExpertMeter: how evenly an engine's tokens lie on the experts and on the ranks that hold them."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from glimt.engine.plan import IntArray
from glimt.wire import ExpertStats

ShareArray = npt.NDArray[np.float64]


class ExpertMeter:
    """Turns counts [L layers, E experts], which only grow, into what servers show.

    `read` gives them, or None while there are none. `shares` [L, R ranks, E]: which part of an
    expert's tokens a rank computes; None where each rank computes a part of every expert.
    """

    def __init__(
        self,
        read: Callable[[], IntArray | None],
        layers: Sequence[int],
        shares: ShareArray | None = None,
    ) -> None:
        self._read = read
        self._layers = tuple(layers)
        self._shares = shares
        self._seen_LE: IntArray | None = None
        self._total_LE: IntArray | None = None
        self._stats = ExpertStats()

    def stats(self, *, reads: bool = True) -> ExpertStats:
        """Since the start; imbalances since the last counts that differ from these.

        `reads` False: as they were the last time.
        """
        counts_LE = self._read() if reads else None
        if counts_LE is None:
            return self._stats
        if self._seen_LE is None or self._total_LE is None or (counts_LE < self._seen_LE).any():
            self._seen_LE = np.zeros_like(counts_LE)  # at first, and of a model that was read anew
            if self._total_LE is None:
                self._total_LE = np.zeros_like(counts_LE)
        new_LE = counts_LE - self._seen_LE
        self._seen_LE = counts_LE
        if new_LE.any():
            self._total_LE = self._total_LE + new_LE
            self._stats = self._judge(self._total_LE, new_LE)
        return self._stats

    def _judge(self, total_LE: IntArray, new_LE: IntArray) -> ExpertStats:
        ranks: list[int] = []
        by_rank: dict[int, float] = {}
        if self._shares is not None:
            ranks = np.einsum("lre,le->r", self._shares, total_LE).round().astype(int).tolist()
            by_rank = self._imbalance(np.einsum("lre,le->lr", self._shares, new_LE))
        return ExpertStats(
            expert_tokens=tuple(total_LE.sum(0).tolist()),
            rank_tokens=tuple(ranks),
            expert_imbalance=self._imbalance(new_LE),
            rank_imbalance=by_rank,
        )

    def _imbalance(self, loads: npt.NDArray[np.generic]) -> dict[int, float]:
        """Most over mean of each row, by layer; of layers that were used."""
        means = loads.mean(1)
        return {
            layer: float(row.max() / mean)
            for layer, row, mean in zip(self._layers, loads, means, strict=True)
            if mean > 0
        }
