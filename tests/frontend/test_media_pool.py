"""Sources become pixels in the arena once, and nobody who leaves, dies or waits breaks that.

The hub and its sockets are real. The worker on the other side is either the real process or a
script, where the order of events is the point.
"""

import asyncio
import base64
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from glimt.arena import SharedArena, anonymous_file
from glimt.errors import BadMedia, GlimtError, MediaBlocked, Overloaded
from glimt.frontend.arena_pool import ArenaPool
from glimt.frontend.fetch import FetchPolicy, MediaFetcher
from glimt.frontend.media_pool import Frames, MediaPool, PoolLimits
from glimt.frontend.pixel_pool import ALIGNMENT
from glimt.frontend.prompt import MediaSource, PreparedMedia
from glimt.frontend.shared_pool import SharedPool
from glimt.media.prepare import prepare as prepare_here
from glimt.metrics import Metrics
from glimt.processes.control import (
    MediaWorkerStart,
    Ready,
    first_message,
)
from glimt.processes.control_line import pair, parent_line
from glimt.transport import AsyncHub
from glimt.wire import (
    ErrorInfo,
    ImageSettings,
    MediaDone,
    MediaFrame,
    MediaGrant,
    MediaHello,
    MediaInbound,
    MediaJob,
    MediaLimits,
    MediaOutbound,
    MediaPrepared,
    PixelRef,
)
from tests.support.media import encoded, grey_clip, pattern

IMAGE, VIDEO = ImageSettings(), ImageSettings(sampler="glm46v", max_pixels=47_040_000)
SMALL = 4 * 3 * 196  # bytes of a scripted result


class Rig:
    """A pool with everything under it, and what the tests look at."""

    def __init__(self, folder: Path, num_pages: int, limits: MediaLimits, **wait: Any) -> None:
        self.address = f"ipc://{folder}/hub"
        self.memory = SharedArena.create(num_pages * ALIGNMENT, index=0)
        self.arena: ArenaPool[Frames] = ArenaPool(self.memory)
        self.metrics = Metrics(model_name="test")
        self.hub: AsyncHub[MediaOutbound] = AsyncHub(self.address, MediaOutbound)
        self.fetcher = MediaFetcher(FetchPolicy(limits=limits))
        self.pool = MediaPool(
            self.hub,
            self.arena,
            self.fetcher,
            image=IMAGE,
            video=VIDEO,
            limits=limits,
            metrics=self.metrics.media,
            pool_limits=PoolLimits(**wait),
        )

    def prepare(self, data: bytes, kind: str = "image") -> "asyncio.Task[PreparedMedia]":
        return asyncio.ensure_future(self.pool.prepare(source(data, kind)))

    def value(self, name: str) -> float:
        return (
            self.metrics.registry.get_sample_value(name, {"model_name": "test", "engine": "0"})
            or 0.0
        )

    def nothing_is_held(self) -> bool:
        """All of the arena can be had: no range is leased or lost."""
        self.arena.check()
        place = self.arena.allocate(self.arena.nbytes)
        if place is not None:
            self.arena.free(place)
        return place is not None and self.pool.num_jobs == 0


@asynccontextmanager
async def rig(
    folder: Path, num_pages: int = 64, limits: MediaLimits | None = None, **wait: Any
) -> AsyncIterator[Rig]:
    made = Rig(folder, num_pages, limits or MediaLimits(), **wait)
    running = asyncio.ensure_future(made.pool.run())
    try:
        yield made
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await made.fetcher.close()
        made.hub.close()
        made.memory.close()


def source(data: bytes, kind: str = "image", param: str = "messages[0]") -> MediaSource:
    text = base64.b64encode(data).decode()
    return MediaSource(kind, f"data:{kind}/x;base64,{text}", param)


class Script:
    """A worker that does what the test says, over a real socket."""

    def __init__(self, address: str, name: str) -> None:
        self.name = name
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, name.encode())
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)
        self._decoder = msgspec.msgpack.Decoder(MediaInbound)

    async def send(self, message: Any) -> None:
        await self._socket.send(msgspec.msgpack.encode(message))

    async def receive(self) -> Any:
        head, *_ = await asyncio.wait_for(self._socket.recv_multipart(), 10)
        return self._decoder.decode(head)

    async def job(self) -> MediaJob:
        message = await self.receive()
        assert isinstance(message, MediaJob)
        return message

    async def offer(self, job: MediaJob, nbytes: int = SMALL) -> None:
        frame = MediaFrame(2, 2, 1, 0, nbytes, "")
        await self.send(
            MediaPrepared(job_id=job.job_id, nbytes=nbytes, frames=(frame,), decode_s=0, resize_s=0)
        )

    async def grant(self) -> PixelRef | None:
        message = await self.receive()
        assert isinstance(message, MediaGrant)
        return message.place

    async def done(self, job: MediaJob, error: ErrorInfo | None = None) -> None:
        await self.send(MediaDone(job_id=job.job_id, error=error))

    async def serve(self, nbytes: int = SMALL) -> None:
        """One whole job."""
        job = await self.job()
        await self.offer(job, nbytes)
        await self.grant()
        await self.done(job)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@asynccontextmanager
async def script(rig: Rig, name: str = "media-0.1") -> AsyncIterator[Script]:
    worker = Script(rig.address, name)
    await worker.send(MediaHello(0))
    await until(lambda: rig.pool.num_workers > 0)
    try:
        yield worker
    finally:
        worker.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


# ------------------------------------------------------------------------- the real process


@asynccontextmanager
async def process(rig: Rig) -> AsyncIterator["subprocess.Popen[bytes]"]:
    ours, theirs = pair()
    fds = (theirs.fileno(), rig.memory.fd)
    child = subprocess.Popen(
        [sys.executable, "-m", "glimt.processes.media_worker", "--control-fd", str(fds[0])],
        pass_fds=fds,
    )
    theirs.close()
    line = parent_line(ours)
    start = MediaWorkerStart(
        number=0,
        server=0,
        name="media-0.1",
        hub=rig.address,
        arena_fd=rig.memory.fd,
        arena=0,
        log_level="error",
        log_json=False,
    )
    line.send(first_message(start))
    try:
        assert isinstance(await asyncio.to_thread(line.receive), Ready)
        await until(lambda: rig.pool.num_workers == 1)
        yield child
    finally:
        line.close()  # the child takes this for the death of its parent
        await asyncio.to_thread(child.wait, 20)


async def test_a_worker_process_puts_the_pixels_into_the_arena(tmp_path: Path) -> None:
    async with rig(tmp_path, num_pages=4096) as each, process(each) as child:
        picture, movie = encoded(pattern(60, 90), "JPEG"), grey_clip(20, rate=10)
        for kind, data, settings in (("image", picture, IMAGE), ("video", movie, VIDEO)):
            result = await each.prepare(data, kind)
            limits = MediaLimits()
            job = MediaJob(job_id=1, kind=kind, settings=settings, limits=limits)
            expected = prepare_here(job, data)
            pixels = b"".join(bytes(each.memory.view(frame.pixels)) for frame in result.frames)
            assert pixels == expected.buffer.tobytes()
            assert [f.timestamp for f in result.frames] == [f.timestamp for f in expected.frames]
            again = await each.prepare(data, kind)
            assert (again.content_hash, again.frames) == (result.content_hash, result.frames)
            result.lease.release()
            again.lease.release()
        assert each.value("vllm:mm_cache_queries_total") == 4
        assert each.value("vllm:mm_cache_hits_total") == 2
        for damaged in (picture[:-100], b"nothing"):
            with pytest.raises(BadMedia) as refused:
                await each.prepare(damaged)
            assert refused.value.param == "messages[0]"
        with pytest.raises(BadMedia, match="base64"):
            await each.pool.prepare(MediaSource("image", "data:image/png;base64,a_b-", "p"))
        limit = Path(f"/proc/{child.pid}/limits").read_text("ascii")
        assert "Max core file size        0 " in limit
        assert "Max address space         unlimited" not in limit
        os.kill(child.pid, signal.SIGKILL)
        each.pool.worker_down("media-0.1")
        assert each.pool.num_workers == 0
        assert each.nothing_is_held()


# -------------------------------------------------------------------------------- sharing


async def test_the_same_medium_at_the_same_time_is_one_job(tmp_path: Path) -> None:
    async with rig(tmp_path) as each, script(each) as worker:
        tasks = [each.prepare(b"same") for _ in range(5)]
        await worker.serve()
        results = await asyncio.gather(*tasks)
        assert len({result.frames for result in results}) == 1
        assert each.value("vllm:mm_cache_hits_total") == 4
        for result in results:
            assert not each.nothing_is_held()
            result.lease.release()
        assert each.nothing_is_held()


async def test_kind_bytes_and_transport_make_the_key(tmp_path: Path) -> None:
    async with rig(tmp_path) as each, script(each) as worker:
        hashes = []
        for data, kind in ((b"a", "image"), (b"b", "image"), (b"a", "video")):
            task = each.prepare(data, kind)
            await worker.serve()
            hashes.append((await task).content_hash)
        assert len(set(hashes)) == 3
        assert {len(content_hash) for content_hash in hashes} == {32}


async def test_a_cached_medium_is_evicted_when_its_room_is_needed(tmp_path: Path) -> None:
    async with rig(tmp_path, num_pages=2) as each, script(each) as worker:
        for data in (b"a", b"b", b"c", b"a"):
            task = each.prepare(data)
            await worker.serve()  # even the second "a": "c" took its place
            (await task).lease.release()
        assert each.value("vllm:mm_cache_hits_total") == 0


# -------------------------------------------------------------------------------- leaving


async def test_a_queued_job_vanishes_with_its_last_reader(tmp_path: Path) -> None:
    async with rig(tmp_path) as each:
        first, second = each.prepare(b"x"), each.prepare(b"x")
        await until(lambda: each.pool.num_jobs == 1)
        first.cancel()
        await asyncio.wait([first])
        assert each.pool.num_jobs == 1
        second.cancel()
        await asyncio.wait([second])
        assert each.pool.num_jobs == 0
        async with script(each) as worker:
            task = each.prepare(b"y")
            await worker.serve()
            (await task).lease.release()
        assert each.nothing_is_held()


async def test_pixels_nobody_wants_any_more_are_not_written(tmp_path: Path) -> None:
    async with rig(tmp_path) as each, script(each) as worker:
        task = each.prepare(b"x")
        job = await worker.job()
        task.cancel()
        await asyncio.wait([task])
        await worker.offer(job)
        assert await worker.grant() is None
        await worker.done(job)
        await until(each.nothing_is_held)
        assert each.arena.num_kept == 0
        task = each.prepare(b"x")
        await worker.serve()
        (await task).lease.release()


async def test_who_comes_while_a_job_is_unwanted_takes_it_over(tmp_path: Path) -> None:
    async with rig(tmp_path) as each, script(each) as worker:
        first = each.prepare(b"x")
        job = await worker.job()
        first.cancel()
        await asyncio.wait([first])
        second = each.prepare(b"x")
        await asyncio.sleep(0.01)
        await worker.offer(job)
        assert await worker.grant() is not None
        await worker.done(job)
        (await second).lease.release()
        assert each.nothing_is_held()


async def test_leaving_after_the_grant_leaves_the_pixels_in_the_cache(tmp_path: Path) -> None:
    async with rig(tmp_path) as each, script(each) as worker:
        task = each.prepare(b"x")
        job = await worker.job()
        await worker.offer(job)
        assert await worker.grant() is not None
        task.cancel()
        await asyncio.wait([task])
        await worker.done(job)
        await until(lambda: each.arena.num_kept == 1)
        cached = await each.prepare(b"x")
        cached.lease.release()
        assert each.nothing_is_held()


# -------------------------------------------------------------------------------- failing


async def test_each_reader_gets_the_workers_error_with_its_own_place(tmp_path: Path) -> None:
    async with rig(tmp_path) as each, script(each) as worker:
        tasks = [
            asyncio.ensure_future(each.pool.prepare(source(b"x", param=f"messages[{i}]")))
            for i in range(3)
        ]
        job = await worker.job()
        await worker.done(job, ErrorInfo("image_parse_error", "the PNG image is damaged"))
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        for i, error in enumerate(errors):
            assert isinstance(error, BadMedia)
            assert (error.param, error.message) == (f"messages[{i}]", "the PNG image is damaged")
        task = each.prepare(b"x")
        await worker.serve()  # a failure is not remembered
        (await task).lease.release()


@pytest.mark.parametrize("moment", ["decoding", "waiting for room", "writing"])
async def test_a_worker_that_dies_fails_its_job_and_nothing_else(
    tmp_path: Path, moment: str
) -> None:
    async with rig(tmp_path, num_pages=1) as each:
        async with script(each, "dying") as worker:
            if moment == "waiting for room":
                other = each.prepare(b"other")
                await worker.serve()
                held = await other
            task = each.prepare(b"x")
            job = await worker.job()
            if moment != "decoding":
                await worker.offer(job)
            if moment == "writing":
                assert await worker.grant() is not None
            await asyncio.sleep(0.01)
        each.pool.worker_down("dying")
        if moment == "waiting for room":
            held.lease.release()
        with pytest.raises(BadMedia) as failed:
            await task
        assert failed.value.param == "messages[0]"
        assert each.nothing_is_held()
        async with script(each, "successor") as worker:
            task = each.prepare(b"x")
            await worker.serve()
            (await task).lease.release()


async def test_a_worker_that_vanished_unannounced_is_passed_over(tmp_path: Path) -> None:
    async with rig(tmp_path) as each:
        async with script(each, "vanished"):
            pass
        async with asyncio.timeout(10):
            while await each.hub.send("vanished", MediaGrant(0, None)):  # until the hub notices
                await asyncio.sleep(0.001)
        task = each.prepare(b"x")
        await until(lambda: each.pool.num_workers == 0)
        async with script(each, "other") as worker:
            await worker.serve()
            (await task).lease.release()
        assert each.nothing_is_held()


async def test_a_late_worker_is_given_up_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glimt.frontend.media_workers._GRACE_S", 0.0)
    limits = MediaLimits(decode_timeout_s=0.05)
    async with rig(tmp_path, limits=limits) as each, script(each) as worker:
        task = each.prepare(b"slow")
        job = await worker.job()
        with pytest.raises(BadMedia, match="too long"):
            await task
        await worker.offer(job)
        assert await worker.grant() is None
        monkeypatch.setattr("glimt.frontend.media_workers._GRACE_S", 60.0)  # that was the late one
        task = each.prepare(b"next")
        await asyncio.sleep(0.01)
        await worker.done(job)
        await worker.serve()
        (await task).lease.release()
        assert each.nothing_is_held()


async def test_what_the_fetcher_refuses_reaches_no_worker(tmp_path: Path) -> None:
    async with rig(tmp_path) as each:
        with pytest.raises(MediaBlocked):
            await each.pool.prepare(MediaSource("image", "ftp://x.example/", "p"))
        assert each.pool.num_jobs == 0


# ----------------------------------------------------------------------------------- room


async def test_a_job_waits_for_room_until_a_lease_is_released(tmp_path: Path) -> None:
    async with rig(tmp_path, num_pages=1) as each, script(each) as worker:
        first = each.prepare(b"a")
        await worker.serve()
        held = await first
        second = each.prepare(b"b")
        job = await worker.job()
        await worker.offer(job)
        await asyncio.sleep(0.01)
        assert not second.done()
        held.lease.release()
        assert await worker.grant() is not None
        await worker.done(job)
        (await second).lease.release()


async def test_room_goes_to_whom_came_first(tmp_path: Path) -> None:
    """A small job must not overtake a large one for ever."""
    async with (
        rig(tmp_path, num_pages=2) as each,
        script(each, "one") as one,
        script(each, "two") as two,
    ):
        await until(lambda: each.pool.num_workers == 2)
        holder = each.prepare(b"holder")
        await one.serve()
        held = await holder
        large = each.prepare(b"large")
        large_job = await two.job()
        await two.offer(large_job, 2 * ALIGNMENT)
        await asyncio.sleep(0.01)
        small = each.prepare(b"small")
        small_job = await one.job()
        await one.offer(small_job)
        await asyncio.sleep(0.01)
        assert not small.done()
        held.lease.release()
        assert await two.grant() is not None
        await two.done(large_job)
        (await large).lease.release()
        assert await one.grant() is not None
        await one.done(small_job)
        (await small).lease.release()


async def test_a_full_arena_is_overload(tmp_path: Path) -> None:
    async with rig(tmp_path, num_pages=1, room_timeout_s=0.05) as each, script(each) as worker:
        first = each.prepare(b"a")
        await worker.serve()
        held = await first
        second = each.prepare(b"b")
        job = await worker.job()
        await worker.offer(job)
        assert await worker.grant() is None
        await worker.done(job)
        with pytest.raises(Overloaded):
            await second
        held.lease.release()
        assert each.nothing_is_held()


async def test_what_never_fits_is_bad_media(tmp_path: Path) -> None:
    async with rig(tmp_path, num_pages=1) as each, script(each) as worker:
        task = each.prepare(b"a")
        job = await worker.job()
        await worker.offer(job, ALIGNMENT + 1)
        assert await worker.grant() is None
        await worker.done(job)
        with pytest.raises(BadMedia, match="more than this server"):
            await task


async def test_the_queue_is_bounded_in_jobs_and_bytes(tmp_path: Path) -> None:
    async with rig(tmp_path, max_queued_jobs=3, max_queued_bytes=100) as each:
        tasks = [each.prepare(b"%d" % i) for i in range(3)]
        await until(lambda: each.pool.num_jobs == 3)
        with pytest.raises(Overloaded):
            await each.prepare(b"one more")
        joining = each.prepare(b"0")
        tasks[2].cancel()
        await asyncio.wait([tasks[2]])
        with pytest.raises(Overloaded):
            await each.prepare(bytes(200))
        for task in (*tasks[:2], joining):
            task.cancel()
        await asyncio.wait([*tasks, joining])
        assert each.pool.num_jobs == 0


async def test_waiting_for_a_worker_has_an_end(tmp_path: Path) -> None:
    async with rig(tmp_path, queue_timeout_s=0.02) as each:
        with pytest.raises(Overloaded):
            await each.prepare(b"x")
        assert each.pool.num_jobs == 0


# -------------------------------------------------------------------------------- stories


@pytest.mark.parametrize("seed", range(12))
async def test_every_story_ends_with_all_answered_and_nothing_held(
    tmp_path: Path, seed: int
) -> None:
    """Random readers who leave at random moments, random workers who fail and die."""
    rng = random.Random(seed)
    async with rig(tmp_path, num_pages=6, room_timeout_s=5.0) as each:
        stop = asyncio.Event()
        workers = [asyncio.ensure_future(clumsy(each, rng, f"w{i}", stop)) for i in range(2)]
        readers = [asyncio.ensure_future(reader(each, rng)) for _ in range(60)]
        for task in readers:
            if rng.random() < 0.3:
                asyncio.get_running_loop().call_later(rng.random() * 0.2, task.cancel)
        _, unanswered = await asyncio.wait(readers, timeout=30)
        assert not unanswered
        await until(each.nothing_is_held)
        stop.set()
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        for task in readers:
            if not task.cancelled():
                task.result()


async def reader(each: Rig, rng: random.Random) -> None:
    await asyncio.sleep(rng.random() * 0.2)
    try:
        result = await each.pool.prepare(source(b"%d" % rng.randrange(12)))
    except GlimtError:
        return
    try:
        await asyncio.sleep(rng.random() * 0.02)
    finally:
        result.lease.release()


async def clumsy(each: Rig, rng: random.Random, name: str, stop: asyncio.Event) -> None:
    for incarnation in range(1000):
        worker = Script(each.address, f"{name}.{incarnation}")
        try:
            await worker.send(MediaHello(0))
            while not stop.is_set():
                job = await worker.job()
                if rng.random() < 0.1:
                    break
                if rng.random() < 0.2:
                    await worker.done(job, ErrorInfo("image_parse_error", "no"))
                    continue
                await worker.offer(job, rng.randrange(1, 3 * ALIGNMENT))
                if rng.random() < 0.1:
                    break
                await worker.grant()
                await worker.done(job)
        finally:
            worker.close()
        each.pool.worker_down(f"{name}.{incarnation}")


# ------------------------------------------------------------------------------- several servers


class Server:
    """One of several servers over the same memory: a pool, and a scripted worker of its own."""

    def __init__(self, folder: Path, memory: SharedArena, index_fd: int, owner: int) -> None:
        address = f"ipc://{folder}/hub-{owner}"
        self.arena = SharedPool(memory, index_fd, Frames, owner=owner, num_owners=2)
        self.hub: AsyncHub[MediaOutbound] = AsyncHub(address, MediaOutbound)
        self.fetcher = MediaFetcher(FetchPolicy())
        self.pool = MediaPool(
            self.hub,
            self.arena,
            self.fetcher,
            image=IMAGE,
            video=VIDEO,
            limits=MediaLimits(),
            metrics=Metrics(model_name="test").media,
        )
        self.worker = Script(address, f"media-{owner}")
        self.running = asyncio.ensure_future(self.pool.run())

    async def close(self) -> None:
        self.running.cancel()
        with suppress(asyncio.CancelledError):
            await self.running
        await self.fetcher.close()
        self.worker.close()
        self.hub.close()


@asynccontextmanager
async def two_servers(folder: Path, num_pages: int) -> AsyncIterator[tuple[Server, Server]]:
    memory, index_fd = SharedArena.create(num_pages * ALIGNMENT, index=0), anonymous_file("index")
    servers = [Server(folder, memory, index_fd, owner) for owner in range(2)]
    for server in servers:
        await server.worker.send(MediaHello(0))
    yield servers[0], servers[1]
    for server in servers:
        await server.close()
    memory.close()
    os.close(index_fd)


async def test_an_image_that_one_server_prepared_is_not_decoded_by_the_next(
    tmp_path: Path,
) -> None:
    async with two_servers(tmp_path, 4) as (one, two):
        asked = asyncio.ensure_future(one.pool.prepare(source(b"cat")))
        await one.worker.serve()
        mine = await asked
        theirs = await asyncio.wait_for(two.pool.prepare(source(b"cat")), 5)  # no worker is asked
        assert theirs.frames == mine.frames
        assert theirs.content_hash == mine.content_hash


async def test_room_that_another_server_gives_back_is_found(tmp_path: Path) -> None:
    async with two_servers(tmp_path, 1) as (one, two):
        asked = asyncio.ensure_future(one.pool.prepare(source(b"cat")))
        await one.worker.serve()
        held = await asked
        waiting = asyncio.ensure_future(two.pool.prepare(source(b"dog")))
        job = await two.worker.job()
        await two.worker.offer(job)
        await asyncio.sleep(0.1)
        assert not waiting.done()
        held.lease.release()
        assert await two.worker.grant() is not None
        await two.worker.done(job)
        assert (await waiting).frames
