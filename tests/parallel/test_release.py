"""What frees a GPU whose one-kernel sums wait for a rank that does not come."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from glimt.errors import BadSettings
from glimt.parallel.release import Lane, Release, answer_for_others

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


class Turn:
    """A lane whose answers are done when the device gets to it."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.most = 0

    def is_free(self) -> bool:
        return not self.waiting

    def send(self, answer: Callable[[], None]) -> None:
        self.waiting.append(answer)
        self.most = max(self.most, len(self.waiting))

    def run(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


class Device:
    """Does what free lanes were sent whenever it is asked whether the kernel has ended; the lanes
    behind the kernel when it has.
    """

    def __init__(self, pads: list[Tensor], lanes: list[Turn], num_behind: int) -> None:
        self.thread = Waiting(pads, 0, 0, 1)
        self.lanes, self.num_behind = lanes, num_behind
        self.steps = 0

    def has_ended(self) -> bool:
        self.steps += 1
        done = self.thread.num_done == SYNCS
        for lane in self.lanes[0 if done else self.num_behind :]:
            lane.run()
        self.thread.advance()
        return self.thread.num_done == SYNCS


class Rehearsing(Turn):
    """Nothing stands before the first answer."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0

    def send(self, answer: Callable[[], None]) -> None:
        super().send(answer)
        self.sent += 1
        if self.sent == 1:
            self.run()


def test_lanes_behind_the_kernel_get_one_answer_and_are_waited_for() -> None:
    pads = [torch.zeros(2 * BLOCKS, dtype=torch.int32) for _ in range(2)]
    lanes = [Rehearsing() for _ in range(3)]
    release = Release([pads], 0, lanes, 2.0)
    assert not any(pad.any() for pad in pads)  # the first answers were in other memory
    device = Device(pads, list(lanes), 2)
    release.free(device.has_ended)
    assert device.thread.num_done == SYNCS
    assert [lane.most for lane in lanes] == [1, 1, 1]
    assert [lane.sent for lane in lanes[:2]] == [2, 2]
    assert lanes[2].sent > SYNCS
    assert all(lane.is_free() for lane in lanes)


def test_a_device_that_answers_nothing_is_given_up_in_time() -> None:
    pads = [torch.zeros(2 * BLOCKS, dtype=torch.int32) for _ in range(2)]
    lanes: list[Lane] = [Rehearsing()]
    release = Release([pads], 0, lanes, 0.05)
    with pytest.raises(BadSettings, match="disable-custom-all-reduce"):
        release.free(lambda: False)
