"""What frees a GPU whose one-kernel sums wait for a rank that does not come."""

import random

import pytest
import torch
from torch import Tensor

from glimt.parallel.one_kernel import answer_for_others

BLOCKS, SYNCS = 3, 6


class Waiting:
    """One thread of a kernel's block, of which each rank has one: in each of its synchronisations
    it sets its rank's signal in the pad of `target`, once that is 0, and takes the target's back
    from its own, once that is 1. All threads of a block are done before its next one begins.
    """

    def __init__(self, pads: list[Tensor], rank: int, block: int, target: int) -> None:
        size = len(pads)
        self._put = pads[target][block * size + rank]
        self._take = pads[rank][block * size + target]
        self.num_done = 0
        self._has_put = False

    def advance(self) -> None:
        """By one look at what it waits for."""
        if not self._has_put:
            if self._put == 0:
                self._put.fill_(1)
                self._has_put = True
        elif self._take == 1:
            self._take.fill_(0)
            self._has_put = False
            self.num_done += 1


@pytest.mark.parametrize(("size", "rank"), [(2, 0), (2, 1), (4, 2)])
def test_a_rank_that_is_alone_gets_through_all_its_sums(size: int, rank: int) -> None:
    chance = random.Random(size + rank)
    pads = [torch.zeros(BLOCKS * size + 1, dtype=torch.int32) for _ in range(size)]
    blocks = [[Waiting(pads, rank, b, t) for t in range(size)] for b in range(BLOCKS)]
    everyone = [thread for block in blocks for thread in block]
    for _ in range(4 * SYNCS):
        for _ in range(chance.randrange(1, 12 * len(everyone))):
            block = chance.choice(blocks)
            begun = min(thread.num_done for thread in block)
            thread = chance.choice(block)
            if thread.num_done == begun < SYNCS:
                thread.advance()
        answer_for_others(pads, rank)
        if all(thread.num_done == SYNCS for thread in everyone):
            return
    pytest.fail(f"synchronisations done: {[thread.num_done for thread in everyone]}")
