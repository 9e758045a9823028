"""Musters of two machines as real processes, with this test as both supervisors; no engines."""

import select
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from glimt.processes.children import Child
from glimt.processes.control import Alive, Ready, Refused, Stop
from glimt.processes.far_start import MusterStart
from glimt.processes.group_messages import GroupBegins, GroupEnds, GroupQuiet
from glimt.processes.preflight import Facts
from tests.support.nodes import TOKEN, free_port

FACTS = Facts(versions={"Glimt": "1.0"}, checkpoint={}, settings={"dtype": "float32"})
LIMIT_S = 20.0


class Machine:
    """A muster and what it says."""

    def __init__(
        self, port: int, first_copy: int, facts: Facts = FACTS, token: str = TOKEN
    ) -> None:
        start = MusterStart(
            first_copy=first_copy,
            num_here=1,
            num_copies=2,
            listens=first_copy == 0,
            host="127.0.0.1",
            port=port,
            meeting_port=port + 1,
            token=token,
            facts=facts,
            log_level="info",
            log_json=False,
        )
        self.child = Child("muster", "glimt.processes.muster", start)

    def hears(self) -> Any:
        """The next message but signs of life; None: it has ended."""
        while select.select([self.child.line.fileno()], [], [], LIMIT_S)[0]:
            message = self.child.line.receive()
            if not isinstance(message, Alive):
                return message
        raise AssertionError(f"nothing was heard for {LIMIT_S:.0f} s")

    def is_quiet(self, number: int) -> None:
        self.child.line.send(GroupQuiet(number))


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def caller(port: int) -> Iterator[Machine]:
    machine = Machine(port, 0)
    assert machine.hears() == Ready()
    yield machine
    machine.child.line.send(Stop())
    machine.child.reap()


@pytest.fixture
def other(port: int, caller: Machine) -> Iterator[Machine]:
    machine = Machine(port, 1)
    assert machine.hears() == Ready()
    yield machine
    machine.child.kill()
    machine.child.reap()


def begin(*machines: Machine, after: int = 0) -> None:
    for machine in machines:
        machine.is_quiet(after)
    for machine in machines:
        message = machine.hears()
        assert isinstance(message, GroupBegins)
        group = message.group
        assert (group.number, group.size, group.own_address) == (after + 1, 2, "127.0.0.1")
        assert group.meeting_point == "127.0.0.1"


def test_engines_begin_when_all_are_quiet_and_end_with_any(caller: Machine, other: Machine) -> None:
    begin(caller, other)
    other.is_quiet(1)  # its engines have died
    assert caller.hears() == GroupEnds(1)
    caller.is_quiet(1)
    for machine in (caller, other):
        assert isinstance(machine.hears(), GroupBegins)
    caller.is_quiet(2)
    assert other.hears() == GroupEnds(2)


def test_a_machine_that_is_killed_is_noticed_and_may_come_back(
    caller: Machine, other: Machine, port: int
) -> None:
    begin(caller, other)
    other.child.kill()
    assert caller.hears() == GroupEnds(1)
    caller.is_quiet(1)
    again = Machine(port, 1)
    assert again.hears() == Ready()
    again.is_quiet(0)
    for machine in (caller, again):
        assert isinstance(machine.hears(), GroupBegins)
    again.child.kill()
    again.child.reap()


@pytest.mark.slow
def test_a_machine_that_is_stopped_is_given_up(caller: Machine, other: Machine) -> None:
    begin(caller, other)
    other.child._process.send_signal(signal.SIGSTOP)
    assert caller.hears() == GroupEnds(1)


def test_without_the_machine_that_calls_the_roll_the_others_end(
    caller: Machine, other: Machine
) -> None:
    begin(caller, other)
    caller.child.kill()
    assert other.hears() is None
    assert other.child.reap() == 1


def test_a_number_that_is_taken_and_a_wrong_token_are_refused(
    caller: Machine, other: Machine
) -> None:
    for token, words in (
        (TOKEN, "there is a node of replica 1"),
        (TOKEN[::-1], "--master-token is not the one"),
    ):
        machine = Machine(caller.child.start.port, 1, token=token)
        message = machine.hears()
        assert isinstance(message, Refused)
        assert words in message.message
        assert machine.child.reap() == 2


def test_what_differs_is_said(caller: Machine) -> None:
    unlike = Facts(versions={"Glimt": "1.1"}, checkpoint={}, settings={"dtype": "float16"})
    machine = Machine(caller.child.start.port, 1, unlike)
    message = machine.hears()
    assert isinstance(message, Refused)
    assert "Glimt: 1.1 there, 1.0 on the head; --dtype: float16 there" in message.message
    assert machine.child.reap() == 2
