"""Main of a server process: HTTP on the supervisor's socket, engines and media by messages.

Torch-free. Everything happens on one event loop; what would hold it up (hashing a large picture,
reading a file) happens in threads, what is heavy (decoding) in the media workers.
"""

import asyncio
import dataclasses
import logging
import socket
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
import uvloop

from glimt import __version__
from glimt.api.app import create_app
from glimt.api.state import ApiState, HttpLimits, Lifecycle
from glimt.arena import SharedArena
from glimt.board import Board
from glimt.checkpoint import checkpoint_file
from glimt.frontend.arena_pool import ArenaPool
from glimt.frontend.client import EngineClient
from glimt.frontend.fetch import FetchPolicy, MediaFetcher
from glimt.frontend.grammars import GrammarChecker
from glimt.frontend.media_pool import Frames, MediaPool
from glimt.frontend.pixel_pool import PixelPool
from glimt.frontend.shared_pool import SharedPool
from glimt.frontend.tokenizer import Tokenizer
from glimt.grammar.compiler import GrammarCompiler
from glimt.grammar.vocabulary import Vocabulary
from glimt.log import set_up
from glimt.metric_sum import Ledger
from glimt.metrics import Metrics
from glimt.processes import child
from glimt.processes.connection import KEEP_ALIVE_S, Connection
from glimt.processes.control import (
    Alive,
    Drain,
    EngineDown,
    EngineLeaving,
    EngineUp,
    MediaWorkerDown,
    Notice,
    Ready,
    ServerStart,
    Stop,
    ToChild,
)
from glimt.processes.control_line import ControlLine
from glimt.processes.server_state import make_state
from glimt.processes.tls import REFRESH_INTERVAL_S, TlsContext
from glimt.traces import TraceExporter
from glimt.transport import AsyncHub, AsyncInbox, Outbox
from glimt.wire import MediaOutbound, Outputs

log = logging.getLogger(__name__)

STATS_INTERVAL_S = 10.0
TELL_INTERVAL_S = 1.0


class ServerProcess:
    """The parts of one server process and the tasks that keep them going."""

    def __init__(self, start: ServerStart, line: ControlLine[ToChild]) -> None:
        self._start = start
        self._line = line
        self._outboxes: dict[int, Outbox] = {}
        self._metrics = Metrics(
            model_name=start.served_model_names[0],
            max_model_len=start.max_model_len,
            cache_config=start.cache_config,
            first_copy=min(start.copies, default=0),
        )
        self._board = Board(start.board_fd, start.index, start.num_servers)
        self._lifecycle = Lifecycle(board=self._board)
        self._client = EngineClient(
            clock=time.monotonic,
            metrics=self._metrics,
            server=start.index,
            max_waiting=start.max_num_queued_reqs,
            board=self._board,
            copies=start.copies,
        )
        self._inbox: AsyncInbox[Outputs] = AsyncInbox(start.inbox, Outputs)
        self._fetcher = MediaFetcher(
            FetchPolicy(
                allowed_domains=start.allowed_media_domains,
                local_root=start.allowed_local_media_path,
                limits=start.limits,
            )
        )
        hub: AsyncHub[MediaOutbound] = AsyncHub(start.media_hub, MediaOutbound)
        pool = _pixel_pool(start)
        self._watch_memory(pool)
        self._media = MediaPool(
            hub,
            pool,
            self._fetcher,
            image=start.image,
            video=start.video,
            limits=start.limits,
            metrics=self._metrics.media,
        )
        path = checkpoint_file(Path(start.model_path), "tokenizer.json")
        self._tokenizer = tokenizer = Tokenizer(path)
        self._grammars = GrammarChecker(
            GrammarCompiler(Vocabulary.read(path, tokenizer.vocab_size))
        )
        self._traces = _trace_exporter(start)
        self._tls = None if start.tls is None else TlsContext(start.tls)
        self._http = self._make_http()
        self._tasks: list[asyncio.Task[Any]] = []

    def _watch_memory(self, pool: PixelPool[Frames]) -> None:
        """Show the pool and the limits, and with several servers all of their series as one."""
        start, metrics = self._start, self._metrics
        shares_media = start.index_fd >= 0
        metrics.media.watch_memory(lambda: pool.num_free_bytes, lambda: pool.num_kept)
        metrics.set_limits(_limits(start, pool.nbytes * (1 if shares_media else start.num_servers)))
        if start.ledger_fd >= 0:
            metrics.add_up(
                Ledger(start.ledger_fd, start.index, start.num_servers),
                lambda: self._board.num_preparing_elsewhere,
                shares_media=shares_media,
            )

    def _make_state(self) -> ApiState:
        return make_state(
            self._start,
            client=self._client,
            media=self._media,
            tokenizer=self._tokenizer,
            grammars=self._grammars,
            metrics=self._metrics,
            lifecycle=self._lifecycle,
            tracer=self._traces,
            tell_others=lambda kind, reason: self._line.send(Notice(kind, reason)),
        )

    def _make_http(self) -> uvicorn.Server:
        tls = self._tls
        config = uvicorn.Config(
            create_app(self._make_state()),
            loop="none",
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            root_path=self._start.root_path,
            ssl_context_factory=None if tls is None else lambda config, make: tls.context,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=5,
        )
        return uvicorn.Server(config)

    async def run(self) -> None:
        """Serve until drained or stopped."""
        asyncio.get_running_loop().add_reader(self._line.fileno(), self._on_control)
        self._spawn(self._receive_outputs())
        self._spawn(self._media.run())
        if self._tls is not None and self._start.tls is not None and self._start.tls.refresh:
            self._spawn(self._refresh_tls(self._tls))
        if self._traces is not None:
            self._spawn(self._traces.run())
        if self._start.log_stats:
            self._spawn(self._log_stats())
        self._spawn(self._tell_state())
        listener = socket.socket(fileno=self._start.socket_fd)
        self._board.note_started()
        self._line.send(Ready())
        try:
            await self._http.serve(sockets=[listener])
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._fetcher.close()
            self._grammars.close()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        task.add_done_callback(self._on_task_end)
        self._tasks.append(task)

    def _on_task_end(self, task: asyncio.Task[Any]) -> None:
        """A background task that raises takes the process along: the supervisor starts another."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("a background task failed", exc_info=error)
            self._http.should_exit = True

    async def _receive_outputs(self) -> None:
        while True:
            for outputs in await self._inbox.receive():
                self._client.deliver(outputs.engine, outputs)

    async def _refresh_tls(self, tls: TlsContext) -> None:
        while True:
            await asyncio.sleep(REFRESH_INTERVAL_S)
            await asyncio.to_thread(tls.refresh)

    async def _tell_state(self) -> None:
        """The supervisor, that this loop turns; the other servers, what was counted here."""
        while True:
            self._metrics.publish()
            self._line.send(Alive(0.0), waits=False)
            await asyncio.sleep(TELL_INTERVAL_S)

    async def _log_stats(self) -> None:
        """One line every ten seconds while there is something to say."""
        while True:
            await asyncio.sleep(STATS_INTERVAL_S)
            if (fields := self._metrics.summary()) is not None:
                log.info("state", extra={"fields": fields})

    # ------------------------------------------------------------------------- control line

    def _on_control(self) -> None:
        message = self._line.receive()
        match message:
            case None:
                sys.exit("the supervisor is gone")
            case EngineUp(index, address, info):
                self._close_outbox(index)
                self._outboxes[index] = outbox = Outbox(address)
                self._client.add_engine(index, outbox.send, info)
            case EngineDown(index, reason):
                self._client.remove_engine(index, reason)
                self._close_outbox(index)
            case EngineLeaving(index):
                self._client.spare_engine(index)
            case MediaWorkerDown(name):
                self._media.worker_down(name)
            case Notice("end_open", reason):
                self._client.end_all(reason)
            case Notice("forget_pixels"):
                self._media.forget_unleased()
            case Notice("forget_routes"):
                self._client.reset_caches(prefix=False, images=False)
            case Drain(timeout_s):
                self._lifecycle.is_draining = True
                self._spawn(self._drain(timeout_s))
            case Stop():
                self._http.should_exit = True
            case _:
                pass

    def _close_outbox(self, index: int) -> None:
        if (outbox := self._outboxes.pop(index, None)) is not None:
            outbox.close()

    async def _drain(self, timeout_s: float) -> None:
        """Let what runs finish, end what does not in time with an error event, then leave."""
        try:
            await asyncio.wait_for(self._client.drain(), timeout_s)
        except TimeoutError:
            self._client.end_all("the server is shutting down")
            await asyncio.sleep(0.1)  # the events must get out
        self._http.should_exit = True


def _pixel_pool(start: ServerStart) -> PixelPool[Frames]:
    """This server's own cache of pixels, or its part in the one that all servers share."""
    if start.index_fd < 0:
        return ArenaPool(SharedArena(start.arena_fd, start.index))
    return SharedPool(
        SharedArena(start.arena_fd, 0),
        start.index_fd,
        Frames,
        owner=start.index,
        num_owners=start.num_servers,
    )


def _trace_exporter(start: ServerStart) -> TraceExporter | None:
    """What sends spans of requests to a collector, if there is one."""
    if start.otlp_traces_endpoint is None:
        return None
    who = {
        "service.name": "glimt",
        "service.version": __version__,
        "gen_ai.request.model": start.served_model_names[0],
    }
    return TraceExporter(start.otlp_traces_endpoint, who, time.monotonic)


def _limits(start: ServerStart, media_memory_bytes: int) -> dict[str, float]:
    """What is bounded, by the names of the settings."""
    return {
        **dataclasses.asdict(HttpLimits()),
        **msgspec.structs.asdict(start.limits),
        "max_images": start.max_images,
        "max_videos": start.max_videos,
        "max_logprobs": start.max_logprobs,
        "max_num_queued_reqs": start.max_num_queued_reqs,
        "max_media_memory_bytes": media_memory_bytes,
    }


def main() -> None:
    """Entry point of `python -m glimt.processes.server`."""
    start, line = child.begin(ServerStart, __doc__)
    set_up(
        start.log_level,
        as_json=start.log_json,
        name=f"server-{start.index}" if start.num_servers > 1 else "server",
    )

    async def serve() -> None:
        await ServerProcess(start, line).run()

    with child.refusing(line):
        uvloop.run(serve())


if __name__ == "__main__":
    main()
