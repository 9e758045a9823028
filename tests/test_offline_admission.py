"""A batch that is larger than the room for it waits instead of failing."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.errors import Overloaded
from glimt.offline.admission import Admission


class Room:
    """Room of `size`; a request takes its pieces one after the other, as images are prepared,
    and gives them all back when it does not get the next."""

    def __init__(self, size: int) -> None:
        self.free = size
        self.num_refused = 0

    async def take(self, pieces: Sequence[int]) -> int:
        held = 0
        for piece in pieces:
            await asyncio.sleep(0)
            if piece > self.free:
                self.free += held
                self.num_refused += 1
                raise Overloaded("full")
            self.free -= piece
            held += piece
        return held


async def run_all(requests: Sequence[Sequence[int]], room: Room) -> list[object]:
    admission = Admission()

    async def request(pieces: Sequence[int], num_turns: int) -> int:
        held = await admission.enter(lambda: room.take(pieces))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        room.free += held
        admission.leave()
        return held

    runs = [request(pieces, index % 5) for index, pieces in enumerate(requests)]
    return list(await asyncio.wait_for(asyncio.gather(*runs, return_exceptions=True), 20))


PIECES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(st.lists(PIECES, min_size=1, max_size=12), st.integers(1, 12))
def test_all_that_fit_alone_get_in_and_only_the_others_fail(
    requests: list[list[int]], size: int
) -> None:
    room = Room(size)
    results = asyncio.run(run_all(requests, room))
    assert room.free == size
    for pieces, result in zip(requests, results, strict=True):
        if sum(pieces) <= size:
            assert result == sum(pieces)
        else:
            assert isinstance(result, Overloaded)


def test_two_that_hold_what_the_other_needs_both_get_in() -> None:
    room = Room(3)
    assert asyncio.run(run_all([[1, 1, 1], [1, 1, 1]], room)) == [3, 3]
    assert room.num_refused >= 1


def test_a_cancelled_request_makes_room_for_the_next() -> None:
    async def scenario() -> int:
        room, admission = Room(2), Admission()
        first = await admission.enter(lambda: room.take([2]))
        waiting = [asyncio.ensure_future(admission.enter(lambda: room.take([2]))) for _ in "ab"]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        room.free += first
        admission.leave()
        return await waiting[1]

    assert asyncio.run(scenario()) == 2
