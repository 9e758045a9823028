"""Engines of several machines wake each other through the store at which they have met."""

import threading
from pathlib import Path

import pytest

from glimt.errors import ReplicaLost
from glimt.experts.group import ExpertGroup
from glimt.parallel.group import Meeting
from glimt.processes import wakes
from glimt.processes.cluster import listen
from glimt.processes.wakes import waker
from glimt.transport import Inbox
from glimt.wire import EngineMessage, Wake


def received(inbox: Inbox[EngineMessage], count: int) -> list[EngineMessage]:
    messages: list[EngineMessage] = []
    while len(messages) < count:
        more = inbox.receive(10.0)
        assert more, f"only {messages} came"
        messages += more
    return messages


def wait_for_listeners() -> None:
    """They end with the store."""
    for thread in threading.enumerate():
        if thread.name == "wakes":
            thread.join(10)
            assert not thread.is_alive()


def test_each_is_woken_in_order_also_if_it_listens_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakes, "_NUM_KEPT", 3)
    addresses = [f"ipc://{tmp_path}/{name}" for name in ("one", "other")]
    inboxes = [Inbox[EngineMessage](address, EngineMessage) for address in addresses]
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        group = ExpertGroup(first=0, size=2, meeting_point="127.0.0.1", meeting_port=port, number=7)
        meeting = Meeting(host="127.0.0.1", port=port, listener_fd=listener.fileno())
        store = meeting.store(2)
        wake = waker(group, addresses[0])
        wake(0)
        wake(17)
        waker(group, addresses[1])(40)
        for inbox in inboxes:
            assert received(inbox, 3) == [Wake(0), Wake(17), Wake(40)]
        for number in range(50, 60):
            wake(number)
            for inbox in inboxes:
                assert received(inbox, 1) == [Wake(number)]
        assert store.check(["7/wakes/13"])
        assert not store.check(["7/wakes/1"])  # nothing is kept for ever
        del store
        wait_for_listeners()
        for inbox in inboxes:
            inbox.close()


def test_a_store_that_is_gone_is_a_replica_that_is_lost(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        meeting = Meeting(host="127.0.0.1", port=port, listener_fd=listener.fileno())
        store = meeting.store(2)
        group = ExpertGroup(first=0, size=2, meeting_point="127.0.0.1", meeting_port=port)
        wake = waker(group, f"ipc://{tmp_path}/engine")
        wake(1)
    del store
    wait_for_listeners()
    with pytest.raises(ReplicaLost):
        wake(2)
