"""Engines of several machines begin together and end together, whatever comes in whatever order."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from glimt.processes.group_messages import GroupBegins, GroupEnds
from glimt.processes.roll_call import Member, RollCall

PORT = 29552


class Machine:
    """What a supervisor does: it starts engines, ends them, and says when they have ended."""

    def __init__(self, roll: RollCall, name: str, copies: range) -> None:
        self.roll, self.copies = roll, copies
        self.engines = 0  # incarnation that runs; 0: none
        self.to_report: list[int] = []
        self.told: list[Any] = []
        self.begun = 0
        self.member = Member(name, copies, f"10.0.0.{copies.start + 1}", self.tell)

    def join(self) -> None:
        self.roll.join(self.member)
        self.to_report.append(0)

    def tell(self, message: GroupBegins | GroupEnds) -> None:
        self.told.append(message)
        if isinstance(message, GroupBegins):
            assert not self.engines, "the engines of before must have ended"
            self.engines = self.begun = message.group.number
        else:
            self.end_engines()

    def end_engines(self) -> None:
        """By order, or because one has died; the news travels."""
        self.engines = 0
        self.to_report.append(self.begun)

    def report(self) -> None:
        if self.to_report:
            self.roll.quiet(self.member, self.to_report.pop(0))


def machines(roll: RollCall) -> list[Machine]:
    return [Machine(roll, "a", range(1)), Machine(roll, "b", range(1, 3))]


def test_they_begin_when_all_are_there_and_quiet_and_meet_at_the_first_copy() -> None:
    roll = RollCall(3, PORT)
    one, other = machines(roll)
    other.join()
    other.report()
    assert roll.missing == [0]
    one.join()
    assert not one.told
    one.report()
    (begins,) = one.told
    assert other.told == [begins]
    group = begins.group
    assert (group.size, group.meeting_point, group.meeting_port) == (3, "10.0.0.1", PORT)


def test_a_death_anywhere_ends_all_and_nothing_begins_before_all_have_ended() -> None:
    roll = RollCall(3, PORT)
    one, other = machines(roll)
    for machine in (one, other):
        machine.join()
        machine.report()
    other.end_engines()
    other.report()
    assert one.told[-1] == GroupEnds(1)
    assert other.told[-1] != GroupEnds(1)  # it has said so itself
    assert not other.engines
    one.report()
    assert one.engines == other.engines == 2


def test_a_machine_that_is_lost_is_waited_for() -> None:
    roll = RollCall(3, PORT)
    one, other = machines(roll)
    for machine in (one, other):
        machine.join()
        machine.report()
    roll.leave(other.member)
    one.report()
    assert roll.missing == [1, 2]
    assert not one.engines
    again = Machine(roll, "b", range(1, 3))
    assert "there is a a already" in roll.objection("c", range(1))
    assert not roll.objection("b", range(1, 3))
    again.join()
    again.report()
    assert one.engines == again.engines == 2


def test_numbers_that_nobody_has_are_objected_to() -> None:
    roll = RollCall(3, PORT)
    assert "0 to 2" in roll.objection("d", range(3, 4))
    assert "0 to 2" in roll.objection("d", range(0))


@given(st.lists(st.sampled_from(["a dies", "b dies", "a says", "b says", "b is lost"])))
def test_no_engine_runs_beside_one_of_another_incarnation(happenings: list[str]) -> None:
    roll = RollCall(3, PORT)
    one, other = machines(roll)
    one.join()
    other.join()
    for happening in happenings:
        machine = one if happening[0] == "a" else other
        if happening.endswith("dies") and machine.engines:
            machine.end_engines()
        elif happening.endswith("says"):
            machine.report()
        elif happening.endswith("lost"):  # and the next is there, whose engines have ended
            roll.leave(other.member)
            other = machines(roll)[1]
            other.join()
        running = {each.engines for each in (one, other)} - {0}
        assert len(running) <= 1
    for _ in range(4):  # news arrives in the end
        for machine in (one, other, one, other):
            machine.report()
    assert one.engines == other.engines != 0
