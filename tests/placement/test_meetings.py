"""Where ranks of several machines meet, and who has to be told anew."""

import threading

from glimt.placement.meetings import Meetings
from glimt.placement.orders import Address

FIRST, SECOND = Address("10.0.0.2", 1000), Address("10.0.0.3", 2000)


def test_the_places_of_other_ranks_wait_until_the_first_has_one() -> None:
    meetings, found = Meetings(2), []
    late = threading.Thread(target=lambda: found.append(meetings.join(1, "late")))
    late.start()
    assert meetings.move(0, "machine a", SECOND) == []  # another copy
    late.join(0.05)
    assert late.is_alive()
    assert meetings.move(1, "machine b", FIRST) == []
    late.join(10)
    assert found == [FIRST]


def test_who_was_told_of_a_lost_machine_is_told_anew() -> None:
    meetings = Meetings(1)
    meetings.move(0, "machine b", FIRST)
    assert meetings.is_at(0, "machine b")
    for who in ("one", "other", "ended"):
        assert meetings.join(0, who) == FIRST
    meetings.leave(0, "ended")
    assert not meetings.is_at(0, "machine c")
    assert meetings.move(0, "machine c", SECOND) == ["one", "other"]
    assert meetings.join(0, "one") == SECOND
    assert meetings.move(0, "machine d", FIRST) == ["one"]
