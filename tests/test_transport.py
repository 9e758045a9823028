"""Messages between processes arrive whole, in order, or not at all."""

import asyncio
import logging
from pathlib import Path

import pytest
import zmq

from glimt.transport import AsyncHub, AsyncInbox, Inbox, Outbox, Spoke
from glimt.wire import (
    Abort,
    EngineInbound,
    MediaDone,
    MediaGrant,
    MediaHello,
    MediaInbound,
    MediaOutbound,
    Output,
    Outputs,
    PixelRef,
    ResetCaches,
    SamplingParams,
    Submit,
)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/socket"


def test_every_message_to_an_engine_arrives_as_it_was(address: str) -> None:
    messages = [
        Submit(
            request_id=1, server=0, token_ids=b"\1\0\0\0", sampling=SamplingParams(max_tokens=3)
        ),
        Abort(0, 1),
        ResetCaches(prefix=False),
    ]
    inbox: Inbox[EngineInbound] = Inbox(address, EngineInbound)
    outbox = Outbox(address)
    for message in messages:
        assert outbox.send(message)
    received: list[EngineInbound] = []
    while len(received) < len(messages):
        received += inbox.receive(5)
    assert received == messages
    outbox.close()
    inbox.close()


def test_an_empty_inbox_gives_nothing_after_its_time(address: str) -> None:
    inbox: Inbox[EngineInbound] = Inbox(address, EngineInbound)
    assert inbox.receive(0.01) == []
    inbox.close()


def test_a_message_that_cannot_be_decoded_costs_no_other(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    inbox: Inbox[EngineInbound] = Inbox(address, EngineInbound)
    outbox = Outbox(address)
    with zmq.Context() as context, context.socket(zmq.PUSH) as stranger:
        stranger.connect(address)
        stranger.send(b"\xc1 not msgpack")
        stranger.send(b"\x81\xa4type\xa6strange")
        outbox.send(Abort(0, 7))
        received: list[EngineInbound] = []
        with caplog.at_level(logging.ERROR):
            while not received or len(caplog.records) < 2:
                received += inbox.receive(5)
    assert received == [Abort(0, 7)]
    outbox.close()
    inbox.close()


async def test_outputs_reach_a_server_in_order_and_several_at_once(address: str) -> None:
    inbox: AsyncInbox[Outputs] = AsyncInbox(address, Outputs)
    outbox = Outbox(address)
    sent = [Outputs((Output(1, (number,)),)) for number in range(100)]
    for outputs in sent:
        outbox.send(outputs)
    received: list[Outputs] = []
    while len(received) < len(sent):
        together = await asyncio.wait_for(inbox.receive(), 5)
        assert 1 <= len(together) <= 32
        received += together
    assert received == sent
    outbox.close()
    inbox.close()


async def test_a_hub_talks_with_each_worker_by_name(address: str) -> None:
    hub: AsyncHub[MediaOutbound] = AsyncHub(address, MediaOutbound)
    spoke: Spoke[MediaInbound] = Spoke(address, "media-0", MediaInbound)
    spoke.send(MediaHello(0))
    assert await asyncio.wait_for(hub.receive(), 5) == ("media-0", MediaHello(0))
    assert await hub.send("media-0", MediaGrant(3, PixelRef(0, 0, 4)), b"payload")
    message, payload = await asyncio.to_thread(spoke.receive)
    assert message == MediaGrant(3, PixelRef(0, 0, 4))
    assert [bytes(frame.buffer) for frame in payload] == [b"payload"]
    spoke.send(MediaDone(job_id=3))
    assert (await asyncio.wait_for(hub.receive(), 5))[1] == MediaDone(job_id=3)
    spoke.close()
    hub.close()


async def test_a_worker_that_is_not_there_is_reported(address: str) -> None:
    hub: AsyncHub[MediaOutbound] = AsyncHub(address, MediaOutbound)
    assert not await hub.send("nobody", MediaGrant(1, None))
    hub.close()
