"""What the head remembers of a machine's requests, and where it puts pixels in its memory."""

import itertools
import random
from typing import Any

import msgspec
import pytest

from glimt.frontend.pixel_pool import ALIGNMENT
from glimt.processes.far_work import MAX_DRIFT, FarArena, FarWork
from glimt.wire import (
    Abort,
    EngineStats,
    ErrorInfo,
    ImageSpan,
    Order,
    OrderDone,
    Output,
    Outputs,
    PixelRef,
    ResetCaches,
    SamplingParams,
    Submit,
)


class Desk:
    """A FarWork, and all that it sends."""

    def __init__(self, num_pages: int = 4, num_servers: int = 2) -> None:
        self.here: dict[PixelRef, bytes] = {}
        self.there = bytearray(num_pages * ALIGNMENT)  # the other machine's memory
        self.num_sent_bytes = 0
        self.to_replica: list[tuple[int, Any]] = []
        self.to_server: list[tuple[int, Outputs]] = []
        self.work = FarWork(
            FarArena(len(self.there)),
            num_servers=num_servers,
            read=self.here.__getitem__,
            send_pixels=self._write,
            send_to_replica=lambda index, message: self.to_replica.append((index, message)),
            send_to_server=lambda server, outputs: self.to_server.append((server, outputs)),
        )

    def _write(self, offset: int, data: bytes) -> None:
        self.there[offset : offset + len(data)] = data
        self.num_sent_bytes += len(data)

    def image(self, seed: int, nbytes: int = ALIGNMENT) -> ImageSpan:
        """In this machine's memory, at a place of its own."""
        place = PixelRef(seed % 2, seed * 10**6, nbytes)
        self.here[place] = random.Random(seed).randbytes(nbytes)
        key = seed.to_bytes(32, "little")
        return ImageSpan(
            content_hash=key, start=0, num_tokens=1, grid_h=2, grid_w=2, num_frames=1, pixels=place
        )

    def submit(self, request_id: int, *images: ImageSpan, server: int = 0, replica: int = 2) -> Any:
        """What the replica gets at once; None: nothing yet."""
        before = len(self.to_replica)
        sampling = SamplingParams(max_tokens=9)
        submit = Submit(
            request_id=request_id, server=server, token_ids=b"", images=images, sampling=sampling
        )
        self.work.take(replica, submit)
        return self.to_replica[before][1] if len(self.to_replica) > before else None

    def pixels(self, submit: Any) -> list[bytes]:
        """That the replica finds in its memory."""
        places = [span.pixels for span in submit.images]
        return [bytes(self.there[p.offset : p.offset + p.nbytes]) for p in places]

    def end(self, submit: Any, reason: str = "stop") -> None:
        self.work.deliver(Outputs((Output(submit.request_id, (1,), reason),), engine=2))


def test_servers_get_the_outputs_of_their_own_requests_under_their_own_numbers() -> None:
    desk = Desk()
    first, second = desk.submit(7, server=0), desk.submit(7, server=1)
    assert first.server == second.server == 0
    assert first.request_id != second.request_id
    outputs = Output(second.request_id, (5,)), Output(first.request_id, (4,), "stop")
    desk.work.deliver(Outputs(outputs, engine=2))
    got = {server: message.outputs for server, message in desk.to_server}
    assert got == {0: (Output(7, (4,), "stop"),), 1: (Output(7, (5,)),)}
    assert all(message.engine == 2 for _, message in desk.to_server)
    assert desk.work.num_open == 1
    desk.end(first)  # a second end is nobody's
    assert len(desk.to_server) == 2


def test_statistics_reach_every_server() -> None:
    desk = Desk(num_servers=3)
    stats = EngineStats(step=3)
    desk.work.deliver(Outputs((), stats, engine=2))
    assert [(server, message.stats) for server, message in desk.to_server] == [
        (server, stats) for server in range(3)
    ]


def test_orders_are_answered_to_who_gave_them() -> None:
    desk = Desk()
    for server in (0, 1):
        desk.work.take(2, Order(server=server, order_id=1, kind="sleep", level=1))
    (_, first), (_, second) = desk.to_replica
    assert (first.server, first.kind, first.level) == (0, "sleep", 1)
    desk.work.deliver(Outputs((), orders=(OrderDone(second.order_id, "done"),), engine=2))
    ((server, answer),) = desk.to_server
    assert (server, answer.orders) == (1, (OrderDone(1, "done"),))
    assert first.order_id != second.order_id


def test_times_are_told_in_the_clock_of_the_machine_that_reads_them() -> None:
    desk = Desk()
    desk.work.note_clock(there_s=100.0, here_s=5000.2)
    desk.work.note_clock(there_s=101.0, here_s=5001.1)  # was faster
    desk.work.note_clock(there_s=102.0, here_s=5002.9)  # was slow
    ahead_s = 4900.1 + MAX_DRIFT
    assert desk.work.clock_ahead_s == pytest.approx(ahead_s)
    sampling = SamplingParams(max_tokens=9)
    desk.work.take(
        2, Submit(request_id=1, server=0, token_ids=b"", sampling=sampling, arrival_s=5002.9)
    )
    ((_, submit),) = desk.to_replica
    assert submit.arrival_s == pytest.approx(5002.9 - ahead_s)
    desk.work.deliver(Outputs((Output(submit.request_id, (), scheduled_s=103.0),), engine=2))
    assert desk.to_server[0][1].outputs[0].scheduled_s == pytest.approx(103.0 + ahead_s)


def test_pixels_are_there_before_the_request_and_are_sent_once() -> None:
    desk = Desk()
    one, two = desk.image(1), desk.image(2, 10)
    first = desk.submit(1, one, two, one)
    assert desk.pixels(first) == [desk.here[span.pixels] for span in (one, two, one)]
    assert desk.num_sent_bytes == ALIGNMENT + 10
    desk.end(first)
    again = desk.submit(2, two, server=1)
    assert desk.pixels(again) == [desk.here[two.pixels]]
    assert desk.num_sent_bytes == ALIGNMENT + 10


def test_without_room_requests_wait_in_order_and_texts_pass() -> None:
    desk = Desk(num_pages=2)
    first = desk.submit(1, desk.image(1), desk.image(2))
    assert desk.submit(2, desk.image(3)) is None
    assert desk.submit(3, desk.image(4)) is None
    assert desk.submit(4) is not None
    desk.end(first)
    waited = [submit for _, submit in desk.to_replica if submit.images][1:]
    assert [desk.pixels(submit) for submit in waited] == [
        [desk.here[desk.image(3).pixels]],
        [desk.here[desk.image(4).pixels]],
    ]


def test_what_is_cached_makes_room_for_what_would_fit_without_it() -> None:
    desk = Desk(num_pages=3)
    for request_id, seed in enumerate((1, 2, 3)):
        desk.end(desk.submit(request_id, desk.image(seed)))
    # 2 lies in the middle: with it leased there is no place for two pages in a row.
    both = desk.submit(9, desk.image(2), desk.image(5, 2 * ALIGNMENT))
    assert desk.pixels(both) == [
        desk.here[desk.image(2).pixels],
        desk.here[desk.image(5, 2 * ALIGNMENT).pixels],
    ]


def test_what_can_never_fit_is_refused_and_holds_nobody_up() -> None:
    desk = Desk(num_pages=2)
    assert desk.submit(1, desk.image(1, 3 * ALIGNMENT)) is None
    ((server, answer),) = desk.to_server
    (output,) = answer.outputs
    assert (server, answer.engine, output.request_id, output.finish_reason) == (0, 2, 1, "error")
    assert output.error == ErrorInfo("engine_failed", output.error.message)
    assert "send fewer" in output.error.message
    assert desk.submit(2, desk.image(2)) is not None


def test_who_waits_can_be_aborted_here_and_who_runs_there() -> None:
    desk = Desk(num_pages=1)
    running = desk.submit(1, desk.image(1))
    desk.submit(2, desk.image(2))
    desk.work.take(2, Abort(0, 2))
    ((_, answer),) = desk.to_server
    assert answer.outputs == (Output(2, (), "abort"),)
    desk.work.take(2, Abort(0, 1))
    assert desk.to_replica[-1] == (2, Abort(0, running.request_id))
    assert desk.work.num_open == 1
    desk.work.take(2, Abort(0, 2))  # it has ended
    desk.work.take(2, Abort(1, 1))  # another server's, which has none
    assert len(desk.to_replica) == 2


def test_a_dead_servers_requests_end_and_its_successor_gets_none_of_their_outputs() -> None:
    desk = Desk(num_pages=1)
    running, other = desk.submit(1, desk.image(1)), desk.submit(1, server=1)
    desk.submit(2, desk.image(2))
    desk.work.server_gone(0)
    assert desk.to_replica[-1] == (2, Abort(0, running.request_id))
    assert desk.work.serves(0)
    successors = desk.submit(1)
    desk.end(running, "abort")
    desk.end(other)
    assert [server for server, _ in desk.to_server] == [1]
    desk.end(successors)
    assert [server for server, _ in desk.to_server] == [1, 0]
    assert not desk.work.serves(0)


def test_a_dead_replica_gives_its_pixels_back() -> None:
    desk = Desk(num_pages=1)
    desk.submit(1, desk.image(1), replica=2)
    assert desk.submit(2, desk.image(2), replica=3) is None
    desk.work.take(2, Order(server=0, order_id=1, kind="wake"))
    desk.work.replica_down(2)
    assert desk.to_replica[-1][0] == 3
    assert desk.work.num_open == 1
    assert not desk.to_server, "the supervisor tells the servers"


def test_forgetting_images_forgets_them_there_as_well() -> None:
    desk = Desk()
    desk.end(desk.submit(1, desk.image(1)))
    desk.work.take(2, ResetCaches(prefix=False, images=True))
    assert desk.to_replica[-1] == (2, ResetCaches(prefix=False, images=True))
    sent = desk.num_sent_bytes
    desk.submit(2, desk.image(1))
    assert desk.num_sent_bytes == 2 * sent


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_each_request_ends_once_and_sees_its_own_pixels(seed: int) -> None:
    rng = random.Random(seed)
    desk = Desk(num_pages=5)
    numbers = itertools.count(1)
    asked: dict[tuple[int, int], list[bytes]] = {}
    running: list[tuple[int, Any]] = []
    num_seen = 0
    for _ in range(300):
        event = rng.random()
        if event < 0.5:
            images = [desk.image(rng.randrange(9)) for _ in range(rng.randrange(4))]
            server, request_id = rng.randrange(2), next(numbers)
            asked[server, request_id] = [desk.here[image.pixels] for image in images]
            desk.submit(request_id, *images, server=server, replica=rng.randrange(2, 4))
        elif event < 0.6 and asked:
            desk.work.take(2, Abort(*rng.choice(list(asked))))
        elif running:
            _, submit = running.pop(rng.randrange(len(running)))
            desk.end(submit)
        for replica, message in desk.to_replica[num_seen:]:
            if isinstance(message, Submit):
                running.append((replica, message))
        num_seen = len(desk.to_replica)
        for _, submit in running:
            assert desk.pixels(submit) in asked.values()
    while running:
        desk.end(running.pop()[1])
        running += [(r, m) for r, m in desk.to_replica[num_seen:] if isinstance(m, Submit)]
        num_seen = len(desk.to_replica)
    ended = [
        (server, output.request_id)
        for server, message in desk.to_server
        for output in message.outputs
        if output.finish_reason
    ]
    assert sorted(ended) == sorted(asked)
    assert not desk.work.num_open


def test_a_message_survives_the_wire() -> None:
    desk = Desk()
    submit = desk.submit(1, desk.image(1))
    frame = msgspec.msgpack.encode(submit)
    assert msgspec.msgpack.decode(frame, type=Submit) == submit
