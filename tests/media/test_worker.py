"""A worker process answers every job once, keeps its deadline, and cannot be talked into more."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from PIL import Image

from glimt.arena import SharedArena
from glimt.processes.control import (
    MediaWorkerStart,
    Ready,
    first_message,
)
from glimt.processes.control_line import pair, parent_line
from glimt.wire import (
    ImageSettings,
    MediaDone,
    MediaGrant,
    MediaHello,
    MediaJob,
    MediaLimits,
    MediaOutbound,
    MediaPrepared,
    PixelRef,
)
from tests.support.media import encoded, pattern

NAME = b"media-3.1"


class Hub:
    """The server's end: a bare socket, so that the order of messages is seen as it is."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)
        self._decoder = msgspec.msgpack.Decoder(MediaOutbound)

    def send(self, message: Any, *payload: bytes) -> None:
        self._socket.send_multipart([NAME, msgspec.msgpack.encode(message), *payload])

    def receive(self) -> Any:
        assert self._socket.poll(60_000)
        name, data = self._socket.recv_multipart()
        assert name == NAME
        return self._decoder.decode(data)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture(scope="module")
def arena() -> Iterator[SharedArena]:
    made = SharedArena.create(1 << 20, index=5)
    yield made
    made.close()


@pytest.fixture(scope="module")
def child(
    arena: SharedArena, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Hub, "subprocess.Popen[bytes]"]]:
    address = f"ipc://{tmp_path_factory.mktemp('hub')}/hub"
    hub = Hub(address)
    ours, theirs = pair()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "glimt.processes.media_worker",
            "--control-fd",
            str(theirs.fileno()),
        ],
        pass_fds=(theirs.fileno(), arena.fd),
        stderr=subprocess.DEVNULL,
    )
    theirs.close()
    line = parent_line(ours)
    start = MediaWorkerStart(
        number=3,
        server=0,
        name=NAME.decode(),
        hub=address,
        arena_fd=arena.fd,
        arena=arena.index,
        log_level="error",
        log_json=False,
    )
    line.send(first_message(start))
    assert isinstance(line.receive(), Ready)
    assert hub.receive() == MediaHello(3)
    yield hub, process
    line.close()
    assert process.wait(30) == 1, "a child without a parent leaves"
    hub.close()


def job(job_id: int, **limits: Any) -> MediaJob:
    return MediaJob(
        job_id=job_id, kind="image", settings=ImageSettings(), limits=MediaLimits(**limits)
    )


def test_pixels_wait_for_a_place_and_fill_it(child: Any, arena: SharedArena) -> None:
    hub, _ = child
    hub.send(job(1), encoded(pattern(112, 112)))
    prepared = hub.receive()
    assert isinstance(prepared, MediaPrepared)
    assert (prepared.job_id, prepared.nbytes) == (1, 112 * 112 * 3)
    hub.send(MediaGrant(99, PixelRef(5, 0, 1)))  # another job's: not for us
    hub.send(MediaGrant(1, PixelRef(5, 4096, prepared.nbytes)))
    assert hub.receive() == MediaDone(job_id=1)
    assert any(arena.view(PixelRef(5, 4096, prepared.nbytes)))
    assert not any(arena.view(PixelRef(5, 0, 4096)))


def test_unwanted_pixels_are_dropped(child: Any) -> None:
    hub, _ = child
    hub.send(job(2), encoded(pattern(30, 30)))
    assert isinstance(hub.receive(), MediaPrepared)
    hub.send(MediaGrant(2, None))
    assert hub.receive() == MediaDone(job_id=2)


def test_a_place_of_the_wrong_size_or_arena_is_an_error_not_an_overflow(child: Any) -> None:
    hub, _ = child
    for number, place in enumerate((PixelRef(5, 0, 10), PixelRef(5, 1 << 20, 37_632))):
        hub.send(job(10 + number), encoded(pattern(112, 112)))
        assert isinstance(hub.receive(), MediaPrepared)
        hub.send(MediaGrant(10 + number, place))
        assert hub.receive().error.code == "image_parse_error"


def test_failures_come_back_as_typed_errors(child: Any) -> None:
    hub, _ = child
    for number, payload in enumerate((b"", b"nothing", encoded(pattern(30, 30))[:-50])):
        hub.send(job(20 + number), payload)
        done = hub.receive()
        assert (done.job_id, done.error.code) == (20 + number, "image_parse_error")


def test_a_slow_decode_is_stopped_at_its_deadline(child: Any) -> None:
    hub, _ = child
    slow = encoded(Image.new("L", (7_000, 7_000)), "PNG")
    hub.send(job(30, decode_timeout_s=0.005), slow)
    done = hub.receive()
    assert done.job_id == 30
    assert "too long" in done.error.message


def test_memory_files_and_core_dumps_are_bounded(child: Any) -> None:
    _, process = child
    limits = {
        line[:26].strip(): line[26:47].strip()
        for line in Path(f"/proc/{process.pid}/limits").read_text("ascii").splitlines()
    }
    assert limits["Max core file size"] == "0"
    assert limits["Max file size"] == "0"
    assert int(limits["Max address space"]) > 4 << 30
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text("ascii") == "900\n"
