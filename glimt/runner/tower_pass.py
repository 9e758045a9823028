"""`TowerPass`: images that go through the vision tower together, a few blocks at a time.

A pass over an image of a thousand tokens takes as long as several decode steps. It is launched in
slices, one behind each step, so that those who decode wait for a slice at most. How long a slice
may be follows from sizes alone, never from clocks: ranks that split the tower do the same.
"""

from collections.abc import Generator, Sequence

from torch import Tensor

from glimt.wire import ImageSpan

# Launching a block takes the host a third of a millisecond, in which it launches no step.
_MAX_BLOCKS = 13

# Patches times blocks of a slice behind a step of one token: on one H200 some 8 ms (a block of
# 5,376 patches took 1.4 ms); on a CPU about as long as a step of the built-in model.
_WORK = {"cuda": 32_768, "cpu": 4_096}
_FULL_STEP = 8  # tokens; steps of as many take longer, and so may slices


def slice_blocks(num_patches: int, num_tokens: int, where: str) -> int:
    """Blocks of the tower to launch behind a step of `num_tokens`; at least one.

    `where`: on a "cuda" or "cpu" device, or "beside" steps, where only the host's time counts.
    """
    if where == "beside":
        return _MAX_BLOCKS
    work = _WORK[where] * (_FULL_STEP + min(num_tokens, _FULL_STEP)) // _FULL_STEP
    return max(1, min(_MAX_BLOCKS, work // num_patches))


class TowerPass:
    """One pass; `slices` stops after each block, and gives the embeddings of `spans` at the end."""

    def __init__(
        self, spans: Sequence[ImageSpan], slices: Generator[None, None, list[Tensor]]
    ) -> None:
        self.keys = tuple(span.content_hash for span in spans)
        self.num_patches = sum(span.grid_h * span.grid_w for span in spans)
        self._slices = slices

    def advance(self, max_blocks: int | None = None) -> list[Tensor] | None:
        """Launch some blocks, or all that are left; the embeddings when that was the last one."""
        while max_blocks is None or max_blocks > 0:
            try:
                next(self._slices)
            except StopIteration as end:
                embeddings: list[Tensor] = end.value
                return embeddings
            if max_blocks is not None:
                max_blocks -= 1
        return None

    def cancel(self) -> None:
        """Give up what it holds."""
        self._slices.close()
