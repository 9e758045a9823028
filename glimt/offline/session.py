"""Both towers in one process: an engine thread, an event loop thread, media threads, one arena.

caller ──jobs──▶ event loop ──Submit, Abort──▶ engine thread
caller ◀─answers─ (frontend) ◀───Outputs────── (scheduler, executor)
                    │ ▲
                    ▼ │ MediaJob … MediaDone
                 media threads ──pixels──▶ arena ──▶ engine
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from glimt.arena import SharedArena
from glimt.builtin.defaults import with_defaults
from glimt.config import Settings
from glimt.config_check import check
from glimt.errors import BadSettings, EngineDied, GlimtError
from glimt.frontend.arena_pool import ArenaPool
from glimt.frontend.client import EngineClient
from glimt.frontend.fetch import FetchPolicy
from glimt.frontend.grammars import GrammarChecker
from glimt.frontend.media_pool import MediaPool, PoolLimits
from glimt.grammar.compiler import GrammarCompiler
from glimt.metrics import Metrics
from glimt.offline.engine_thread import EngineThread
from glimt.offline.frontend import OfflineFrontend
from glimt.offline.media_threads import MediaThreads
from glimt.offline.outputs import RequestOutput
from glimt.offline.pictures import PictureFetcher, room_for_pictures
from glimt.offline.prompts import Job, Language, read_language
from glimt.placement.orders import wants_ray
from glimt.processes.build import Engine, build_engine
from glimt.processes.launch import resolve
from glimt.processes.starting import Plan
from glimt.processes.team import Loss
from glimt.wire import Outputs

Result = TypeVar("Result")

log = logging.getLogger(__name__)

_ROOM_TIMEOUT_S = 0.5  # for a place in the arena
_CLOSED = "this LLM is closed"
_FAILED = "the engine failed; the log says why, and another LLM has to be made"


class Session:
    """A running engine and its frontend. Every method may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        """Resolve, load, start. Raises StartupError."""
        self._is_started = False
        settings = with_defaults(settings)
        if settings.parallel.nnodes != 1:
            raise BadSettings("nnodes: an LLM is on one machine; serve on several (glimt serve)")
        if wants_ray(settings.parallel):
            raise BadSettings("ray: an LLM starts its own processes; serve with Ray (glimt serve)")
        if settings.parallel.data_parallel_size != 1:
            raise BadSettings(
                "data_parallel_size: an LLM is one copy of the model; make several, or serve"
            )
        for note in check(settings):
            log.info("%s", note)
        plan = resolve(settings, lambda line: log.info("%s", line))
        language = read_language(plan.server)
        self._arena = SharedArena.create(plan.arena_bytes, 0)
        try:
            start = msgspec.structs.replace(plan.engine, arena_fds=(self._arena.fd,))
            engine = build_engine(start, [self._arena], _log_phase, self._on_loss)
            self.info = engine.info
            self._start(plan, language, engine)
            self._is_started = True
        except BaseException:
            self._arena.close()
            raise

    def _start(self, plan: Plan, language: Language, engine: Engine) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        self._has_failed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="glimt-frontend-io")
        self._loop.set_default_executor(self._threads)
        self._thread = threading.Thread(target=self._run_loop, name="glimt-frontend", daemon=True)
        self._thread.start()
        try:
            self._call(lambda: self._start_parts(plan, language, engine))
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._end_loop()
            raise

    async def _start_parts(self, plan: Plan, language: Language, engine: Engine) -> None:
        start = plan.server
        metrics = Metrics(model_name=start.served_model_names[0], max_model_len=start.max_model_len)
        limits = room_for_pictures(start.limits)
        client = EngineClient(
            clock=time.monotonic, metrics=metrics, max_waiting=start.max_num_queued_reqs
        )
        policy = FetchPolicy(
            allowed_domains=start.allowed_media_domains,
            local_root=start.allowed_local_media_path,
            limits=start.limits,
        )
        self._fetcher = PictureFetcher(policy, limits)
        self._media_threads = MediaThreads(self._arena, plan.num_media_workers)
        media = MediaPool(
            self._media_threads,
            ArenaPool(self._arena),
            self._fetcher,
            image=start.image,
            video=start.video,
            limits=limits,
            metrics=metrics.media,
            # Who waits longer lets go of what it holds, so that nobody waits for each other.
            pool_limits=PoolLimits(room_timeout_s=_ROOM_TIMEOUT_S, queue_timeout_s=math.inf),
        )
        self._grammars = GrammarChecker(GrammarCompiler(engine.vocabulary))
        self._frontend = OfflineFrontend(start, language, client, metrics, media, self._grammars)
        self._media_task = asyncio.create_task(media.run())
        self._media_task.add_done_callback(self._on_media_end)
        self._client = client
        self._engine = EngineThread(engine, self._deliver, self._on_engine_death)
        client.add_engine(0, self._engine.post, engine.info)
        # Twice what can run: the next prompts are made while the device is busy.
        self._window = 2 * engine.info.max_num_seqs

    # -------------------------------------------------------------------------------- answers

    def answer_all(
        self, jobs: Sequence[Job], on_answer: Callable[[], object]
    ) -> list[RequestOutput]:
        """The answers in the order of the jobs. `on_answer` is called after each.

        Raises the first error of any job; the others are then ended. So they are when the
        caller is interrupted.
        """
        try:
            return self._call(lambda: self._answer_all(jobs, on_answer))
        except EngineDied as error:
            if self._has_failed:  # perhaps only since the call began
                raise EngineDied(_FAILED) from error
            raise

    async def _answer_all(
        self, jobs: Sequence[Job], on_answer: Callable[[], object]
    ) -> list[RequestOutput]:
        answers: dict[int, RequestOutput] = {}
        waiting = iter(enumerate(jobs))

        async def work() -> None:
            for index, job in waiting:
                try:
                    with self._fetcher.showing(job.pictures):
                        answers[index] = await self._frontend.answer(job)
                except GlimtError as error:
                    if len(jobs) > 1:
                        error.add_note(f"It was prompt number {index} of {len(jobs)}, from 0.")
                    raise
                on_answer()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(jobs), self._window)):
                    group.create_task(work())
        except BaseExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
        return [answers[index] for index in range(len(jobs))]

    def _deliver(self, outputs: Outputs) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._client.deliver, 0, outputs)

    def _on_loss(self, loss: Loss) -> None:
        """A rank is gone. The engine thread may wait for it for ever, so callers are told here."""
        log.critical("%s", loss.reason)
        if self._is_started:
            self._on_engine_death()

    def _on_engine_death(self) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._fail)

    def _on_media_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the media pool failed", exc_info=error)
            self._fail()

    def _fail(self) -> None:
        """Nothing can be answered any more."""
        self._has_failed = True
        self._client.remove_engine(0, _FAILED)

    # ------------------------------------------------------------------------------------ end

    def close(self) -> None:
        """End what runs and all threads, give memory back. Doing it again does nothing."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._engine.stop()
        asyncio.run_coroutine_threadsafe(self._stop_parts(), self._loop)
        self._end_loop()
        self._media_threads.close()
        self._threads.shutdown()
        self._arena.close()
        del self._engine

    async def _stop_parts(self) -> None:
        try:
            self._client.remove_engine(0, _CLOSED)  # holds the engine, and with it the weights
            tasks = [*self._tasks, self._media_task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._fetcher.close()
            self._grammars.close()
        finally:
            self._loop.stop()

    # ------------------------------------------------------------------------------ the loop

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _end_loop(self) -> None:
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _call(self, make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Run a coroutine on the loop and wait; if the caller is interrupted, cancel it and wait
        for its end. Raises EngineDied if the session is closed."""
        outcome: Future[Result] = Future()
        tasks: list[asyncio.Task[Result]] = []

        def start() -> None:
            task = self._loop.create_task(make())
            tasks.append(task)
            self._tasks.add(task)
            task.add_done_callback(finish)

        def finish(task: asyncio.Task[Result]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                outcome.set_exception(EngineDied(_CLOSED))
            elif (error := task.exception()) is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(task.result())

        with self._lock:
            if self._is_closed:
                raise EngineDied(_CLOSED)
            self._loop.call_soon_threadsafe(start)
        try:
            return outcome.result()
        finally:
            if not outcome.done():
                self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
                with suppress(BaseException):
                    outcome.exception()


def _log_phase(name: str, seconds: float, detail: str) -> None:
    log.info("%s: %.2f s  %s", name, seconds, detail)
