"""The gate lets machines in, carries for them, and gives up those that are lost."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from glimt.arena import SharedArena
from glimt.processes import far_link
from glimt.processes.cluster import listen
from glimt.processes.control import (
    Alive,
    EngineDown,
    EngineLeaving,
    EngineUp,
    Ready,
    ServerForgotten,
    ServerGone,
    Stop,
    ToChild,
)
from glimt.processes.control_line import ControlLine, pair, parent_line
from glimt.processes.far_link import (
    Admitted,
    Beat,
    FarLink,
    FromReplica,
    HeadStops,
    Introduction,
    NodeLeaves,
    Pixels,
    ReplicaDown,
    ReplicaUp,
    ToReplica,
)
from glimt.processes.far_start import GateStart
from glimt.processes.gate import Gate
from glimt.processes.node_link import LinkLost, NodeLink, TurnedAway, introduce
from glimt.processes.preflight import Facts
from glimt.transport import AsyncInbox, Outbox, encode
from glimt.wire import (
    Abort,
    EngineInfo,
    ImageSpan,
    Output,
    Outputs,
    PixelRef,
    SamplingParams,
    Submit,
)

TOKEN = "a token of sixteen or more"
FACTS = Facts(versions={"Glimt": "1"}, checkpoint={"config.json": "0"}, settings={"dtype": "half"})
INFO = EngineInfo(
    max_model_len=64,
    vocab_size=99,
    num_pages=4,
    page_size=16,
    max_num_batched_tokens=64,
    max_num_seqs=2,
    max_image_tokens=16,
)


class Head:
    """A gate for replicas 1 to 3, and what is around it: its supervisor, a server, machines."""

    def __init__(self, folder: Path) -> None:
        with listen("127.0.0.1", 0) as free:
            self.port = free.getsockname()[1]
        self.arena = SharedArena.create(1 << 16, 0)
        ours, theirs = pair()
        self.line = parent_line(ours)
        self._child: ControlLine[ToChild] = ControlLine(theirs, ToChild)
        inbox = f"ipc://{folder}/server-0"
        self.inbox: AsyncInbox[Outputs] = AsyncInbox(inbox, Outputs)
        start = GateStart(
            num_copies=4,
            num_here=1,
            host="127.0.0.1",
            port=self.port,
            token=TOKEN,
            facts=FACTS,
            inboxes=f"ipc://{folder}/far",
            server_inboxes=(inbox,),
            arena_fds=(os.dup(self.arena.fd),),
            log_level="info",
            log_json=False,
        )
        self.running = asyncio.create_task(Gate(start, self._child).run())
        self.links: list[FarLink] = []

    async def news(self) -> Any:
        """What the gate tells its supervisor next, but signs of life."""
        loop = asyncio.get_running_loop()
        while True:
            readable = asyncio.Event()
            loop.add_reader(self.line.fileno(), readable.set)
            await readable.wait()
            loop.remove_reader(self.line.fileno())
            message = self.line.receive()
            if not isinstance(message, Alive):
                return message

    async def join(self, first: int = 1, count: int = 1, facts: Facts = FACTS) -> Any:
        """A machine comes: its end of the connection, and what it is told."""
        link = await asyncio.to_thread(self.connect)
        assert await asyncio.to_thread(introduce, link, TOKEN) is None
        far = await FarLink.over(link)
        self.links.append(far)
        far.send(
            Introduction(
                host="there", first_copy=first, num_copies=count, arena_bytes=1 << 16, facts=facts
            )
        )
        return far, await far.receive()

    def connect(self) -> NodeLink:
        return NodeLink(socket.create_connection(("127.0.0.1", self.port)))

    async def close(self) -> None:
        self.line.send(Stop())
        await self.running
        for link in self.links:
            link.close()
        self.inbox.close()
        self.arena.close()
        self._child.close()
        self.line.close()


@pytest.fixture
async def head(tmp_path: Path) -> AsyncIterator[Head]:
    head = Head(tmp_path)
    assert await head.news() == Ready()
    yield head
    await head.close()


async def after_beats(link: FarLink) -> Any:
    while isinstance(message := await link.receive(), Beat):
        pass
    return message


async def test_a_machine_that_agrees_is_let_in_and_its_replicas_are_told(head: Head) -> None:
    link, reply = await head.join(first=2, count=2)
    assert reply == Admitted()
    link.send(ReplicaUp(3, INFO))
    up = await head.news()
    assert isinstance(up, EngineUp)
    assert (up.index, up.info) == (3, INFO)
    link.send(ReplicaDown(3))
    assert (await head.news()).index == 3
    link.send(ReplicaUp(3, INFO))
    again = await head.news()
    assert again.address != up.address, "what was sent to the lost one must not reach it"
    link.close()
    down = await head.news()
    assert isinstance(down, EngineDown)
    assert down.index == 3


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        ({"facts": msgspec.structs.replace(FACTS, settings={})}, "--dtype: missing there, half on"),
        ({"facts": msgspec.structs.replace(FACTS, versions={"Glimt": "2"})}, "Glimt: 2 there, 1 "),
        ({"first": 0}, "the head wants replicas 1 to 3 of 4 from others"),
        ({"first": 3, "count": 2}, "--data-parallel-size-local"),
        ({"count": 0}, "the head wants replicas 1 to 3"),
    ],
)
async def test_a_machine_that_does_not_fit_is_told_why(
    head: Head, wish: dict[str, Any], named: str
) -> None:
    _, reply = await head.join(**wish)
    assert isinstance(reply, TurnedAway)
    assert named in reply.reason
    assert "(there)" in reply.reason


async def test_a_replica_that_is_there_already_is_refused_by_name(head: Head) -> None:
    await head.join(first=1, count=2)
    _, reply = await head.join(first=2, count=2)
    assert "there is a node of replicas 1 to 2 (there) already" in reply.reason
    _, reply = await head.join(first=3)
    assert reply == Admitted()


async def test_strangers_learn_nothing_and_hold_nobody_up(head: Head) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", head.port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    stranger = await asyncio.to_thread(head.connect)
    reason = await asyncio.to_thread(introduce, stranger, TOKEN[::-1])
    assert reason is not None
    assert "--master-token" in reason
    _, reply = await head.join()
    assert reply == Admitted()
    stranger.close()
    writer.close()


def submit_of(request_id: int, *images: ImageSpan) -> Submit:
    return Submit(
        request_id=request_id,
        server=0,
        token_ids=b"1234",
        images=images,
        sampling=SamplingParams(max_tokens=2),
    )


async def test_requests_with_pixels_go_there_and_outputs_come_back(head: Head) -> None:
    link, _ = await head.join()
    link.send(ReplicaUp(1, INFO))
    server = Outbox((await head.news()).address)
    place = PixelRef(0, 4096, 300)
    head.arena.view(place)[:] = bytes(range(100)) * 3
    span = ImageSpan(
        content_hash=bytes(32),
        start=0,
        num_tokens=1,
        grid_h=2,
        grid_w=2,
        num_frames=1,
        pixels=place,
    )
    server.send(submit_of(5, span))
    pixels = await after_beats(link)
    assert isinstance(pixels, Pixels)
    assert pixels.data == bytes(range(100)) * 3
    to = await after_beats(link)
    assert isinstance(to, ToReplica)
    there = msgspec.msgpack.decode(to.frame, type=Submit)
    assert there.images[0].pixels == PixelRef(0, pixels.offset, 300)
    assert there.token_ids == b"1234"
    link.send(FromReplica(encode(Outputs((Output(there.request_id, (9,), "stop"),), engine=1))))
    (answer,) = await head.inbox.receive()
    assert answer == Outputs((Output(5, (9,), "stop"),), engine=1)
    server.close()


async def test_a_dead_server_is_forgotten_when_its_requests_have_ended(head: Head) -> None:
    link, _ = await head.join()
    link.send(ReplicaUp(1, INFO))
    server = Outbox((await head.news()).address)
    server.send(submit_of(1))
    there = msgspec.msgpack.decode((await after_beats(link)).frame, type=Submit)
    head.line.send(ServerGone(0))
    server.send(submit_of(2))  # of the dead server, late
    abort = msgspec.msgpack.decode((await after_beats(link)).frame, type=Abort)
    assert abort == Abort(0, there.request_id)
    news = asyncio.create_task(head.news())
    await asyncio.sleep(0.4)
    assert not news.done()
    link.send(FromReplica(encode(Outputs((Output(there.request_id, (), "abort"),), engine=1))))
    assert await news == ServerForgotten(0)
    server.close()


async def test_a_machine_that_leaves_finishes_first(head: Head) -> None:
    link, _ = await head.join()
    link.send(ReplicaUp(1, INFO))
    server = Outbox((await head.news()).address)
    server.send(submit_of(1))
    there = msgspec.msgpack.decode((await after_beats(link)).frame, type=Submit)
    link.send(NodeLeaves())
    assert await head.news() == EngineLeaving(1)
    link.send(FromReplica(encode(Outputs((Output(there.request_id, (9,), "stop"),), engine=1))))
    assert await after_beats(link) == HeadStops()
    server.close()


async def test_a_machine_that_is_silent_is_given_up(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far_link, "SILENCE_LIMIT_S", 0.1)
    link, _ = await head.join()
    link.send(ReplicaUp(1, INFO))
    assert isinstance(await head.news(), EngineUp)
    assert isinstance(await head.news(), EngineDown)
    with pytest.raises(LinkLost):
        await after_beats(link)


async def test_machines_are_told_when_the_head_ends(tmp_path: Path) -> None:
    head = Head(tmp_path)
    await head.news()
    link, _ = await head.join()
    head.line.send(Stop())
    assert await after_beats(link) == HeadStops()
    await head.close()
