"""How engines that share experts wake each other when one of them gets work: by ZeroMQ on one
machine, and through the store at which they have met on several, so no port more is open.

    engine that gets work ──add, set──▶ store ◀──wait── a thread of each ──Wake──▶ its own inbox
"""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from glimt.errors import ReplicaLost
from glimt.experts.group import ExpertGroup
from glimt.parallel.group import Meeting
from glimt.transport import Outbox
from glimt.wire import Wake

_PATIENCE = timedelta(hours=1)  # of one wait, which is then repeated
_NUM_KEPT = 1024  # wakes; who has not seen one so old has taken part in all since


def waker(group: ExpertGroup, inbox: str) -> Callable[[int], None]:
    """What sends a round's number to all engines of the group but the one with this `inbox`."""
    if group.meeting_port:
        return StoreWakes(group, inbox).send
    others = [Outbox(other) for other in group.inboxes if other != inbox]

    def wake(number: int) -> None:
        for other in others:
            other.send(Wake(number))

    return wake


class StoreWakes:
    """Wakes by their count, in the store of the group."""

    def __init__(self, group: ExpertGroup, inbox: str) -> None:
        """Own wakes come back as well, for a round that is over by then or under way."""
        self._store = _store(group)
        listening = _store(group)  # a wait holds its connection
        thread = threading.Thread(
            target=_listen, args=(listening, inbox), name="wakes", daemon=True
        )
        thread.start()

    def send(self, number: int) -> None:
        """Round `number` begins. Raises ReplicaLost if the store is gone."""
        try:
            count = self._store.add("count", 1)
            self._store.set(str(count), str(number))
            if count > _NUM_KEPT:
                self._store.delete_key(str(count - _NUM_KEPT))
        except RuntimeError as error:
            raise ReplicaLost("the first replica that has a part of the experts is gone") from error


def _store(group: ExpertGroup) -> Any:
    meeting = Meeting(
        host=group.meeting_point, port=group.meeting_port, name=f"{group.number}/wakes"
    )
    return meeting.store(group.size)


def _listen(store: Any, inbox: str) -> None:
    """Hand each wake to this engine, until the store is gone: then so is the engine, soon."""
    own = Outbox(inbox)
    count = 1
    while True:
        began_s = time.monotonic()
        try:
            store.wait([str(count)], _PATIENCE)
            own.send(Wake(int(store.get(str(count)))))
            count += 1
        except RuntimeError:
            if time.monotonic() - began_s < _PATIENCE.total_seconds():
                own.close()
                return
