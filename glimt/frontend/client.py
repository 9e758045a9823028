"""EngineClient: the client tower's view of all engines; picks one, submits, yields, aborts.

Knows no sockets: an engine is a function that sends to it, and whoever receives calls `deliver`.
Time is injected and nothing runs on its own, so the whole server can run in a simulation. Every
Submit ends with exactly one terminal output: the engine's own, or one made here when the engine
is gone.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import msgspec

from glimt.board import Board
from glimt.errors import EngineDied, GlimtError, NumericalError, Overloaded
from glimt.frontend.admission import NONE_READY, Admission
from glimt.frontend.choosing import choose, engine_of_copy
from glimt.frontend.engine_view import EngineView, OpenSubmit, Send
from glimt.frontend.generation import Generation
from glimt.frontend.open_orders import OpenOrders
from glimt.frontend.prompt import IntArray, Prompt
from glimt.frontend.routing import Memory
from glimt.metrics import Metrics
from glimt.wire import (
    Abort,
    EngineInfo,
    EngineStats,
    ErrorInfo,
    Output,
    Outputs,
    ResetCaches,
    SamplingParams,
    Submit,
)

# Tokens of an answer that count when replicas are compared: max_tokens is often the whole rest
# of the context and says little about how long an answer will be.
_EXPECTED_ANSWER_TOKENS = 1024
_SEED_STEP = 0x9E3779B97F4A7C15  # odd, so the choices of one request never share a seed


class EngineClient:
    """Sends requests to engines and hands outputs to their readers; one per server process.

    `max_waiting` bounds the requests beyond those that the engines run at once, those of the other
    servers on `board` included. `copies` are the engines that there should be; None: those there.
    `weighs_caches`: of several engines, one that has much of a prompt cached has less to do for it.
    Lives on the event loop; not thread-safe.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        metrics: Metrics,
        server: int = 0,
        max_waiting: int = 1024,
        weighs_caches: bool = True,
        board: Board | None = None,
        copies: Collection[int] | None = None,
    ) -> None:
        self._copies = copies
        metrics.expect_engines(copies or ())
        self._clock = clock
        self._metrics = metrics
        self._server = server
        self._weighs_caches = weighs_caches
        if board is None:
            board = Board()
            board.note_started()
        self._board = board
        self._engines: dict[int, EngineView] = {}
        self._open: dict[int, OpenSubmit] = {}
        self._orders = OpenOrders(server)
        self._last_id = 0
        self._num_preparing = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._admission = Admission(board, clock, max_waiting)

    # ---------------------------------------------------------------------------- engines

    def add_engine(self, index: int, send: Send, info: EngineInfo) -> None:
        """Engine `index` takes requests from now on; an earlier one of that index is removed.

        `send` gives False when the engine does not take the message.
        """
        self.remove_engine(index, "the engine was replaced")
        self._engines[index] = EngineView(
            index, send, info, EngineStats(), Memory(info), self._clock()
        )
        self._board.note_engine(index, 0, 0)
        self._metrics.add_engine(index, info)

    def remove_engine(self, index: int, reason: str) -> None:
        """Engine `index` is gone: its open requests end with EngineDied(reason)."""
        engine = self._engines.pop(index, None)
        if engine is None:
            return
        self._metrics.remove_engine(index)
        error = ErrorInfo(EngineDied.code, reason)
        for request_id, request in list(self._open.items()):
            if request.engine is engine:
                self._take(engine, Output(request_id, (), "error", error=error))
        self._orders.lose(engine, error)

    def spare_engine(self, index: int) -> None:
        """Engine `index` finishes what it has, and gets nothing new."""
        if (engine := self._engines.get(index)) is not None:
            engine.is_leaving = True

    def deliver(self, index: int, outputs: Outputs) -> None:
        """Take in a step's outputs of engine `index`. Unknown requests are ignored."""
        engine = self._engines.get(index)
        if engine is None:
            return
        engine.heard_s = self._clock()
        if outputs.stats is not None:
            engine.stats = outputs.stats
            self._metrics.observe_engine(index, outputs.stats)
        for output in outputs.outputs:
            self._take(engine, output)
        for done in outputs.orders:
            self._orders.settle(done)

    def _take(self, engine: EngineView, output: Output) -> None:
        request = self._open.get(output.request_id)
        if request is None or request.engine is not engine:
            return
        done = len(output.token_ids)
        if not request.is_started:
            request.is_started = True
            engine.waiting_tokens -= request.num_prompt_tokens
            done += request.prompt_work
        if output.finish_reason is not None or done > request.outstanding_tokens:
            done = request.outstanding_tokens
        request.outstanding_tokens -= done
        engine.outstanding_tokens -= done
        self._board.note_engine(engine.index, engine.outstanding_tokens, engine.waiting_tokens)
        if output.finish_reason is not None:
            del self._open[output.request_id]
            engine.num_open -= 1
            self._admission.count_end()
            self._note_idle()
            if output.error is not None and output.error.code == NumericalError.code:
                self._metrics.corrupted.inc()
        request.generation.put(request.choice, output)

    # ------------------------------------------------------------------------------ state

    @property
    def info(self) -> EngineInfo:
        """What the engines resolved at start (all the same). Raises EngineDied without one."""
        for engine in self._engines.values():
            return engine.info
        raise EngineDied(NONE_READY)

    @property
    def num_engines(self) -> int:
        """Engines that take requests."""
        return sum(not engine.is_leaving for engine in self._engines.values())

    @property
    def silence_s(self) -> float:
        """How long the engine that spoke last has said nothing; without an engine, 0."""
        now_s = self._clock()
        return min((now_s - engine.heard_s for engine in self._engines.values()), default=0.0)

    @property
    def sleep_level(self) -> int:
        """Of the engine that sleeps deepest; 0 = all are awake."""
        return max((engine.stats.sleep_level for engine in self._engines.values()), default=0)

    @property
    def num_open(self) -> int:
        """Submits that wait for their terminal output."""
        return len(self._open)

    @property
    def num_preparing(self) -> int:
        """Submits whose prompt is still being made."""
        return self._num_preparing

    @property
    def num_held(self) -> int:
        """Submits of all servers that are open or in preparation."""
        return self._board.num_held

    @property
    def queued_tokens(self) -> int:
        """Of the prompts of all servers that have had no output yet."""
        return sum(self._board.waiting_tokens(index) for index in self._engines)

    @property
    def usage(self) -> float:
        """Share of the engines that is in use, 0 to 1; without an engine, 0."""
        shares = [engine.usage for engine in self._engines.values()]
        return sum(shares) / max(1, len(shares))

    @property
    def all_servers_started(self) -> bool:
        """False until every server process takes requests."""
        return self._board.all_started

    async def drain(self) -> None:
        """Wait until nothing is open or in preparation. Refusing new work is the caller's duty."""
        while self._open or self._num_preparing:  # between the two, a request counts as neither
            await self._idle.wait()

    def end_all(self, reason: str) -> None:
        """End every open request with EngineDied(reason), when a shutdown waits no longer."""
        for generation in {request.generation: None for request in self._open.values()}:
            generation.fail(EngineDied(reason))

    def reset_caches(self, *, prefix: bool, images: bool) -> None:
        """Have all engines forget what no running request holds: known prefixes, embeddings.
        Neither: another server has told them, and what is assumed of them is forgotten."""
        for engine in self._engines.values():
            if prefix or images:
                engine.send(ResetCaches(prefix=prefix, images=images))
            engine.memory.forget()

    async def order(self, kind: str, *, level: int = 0) -> tuple[str, ...]:
        """Have all engines carry out an operator's order; their answers.

        Raises EngineDied, and what the first engine that failed has raised.
        """
        self.info  # noqa: B018 (raises without an engine)
        return await self._orders.give(self._engines.values(), kind, level=level)

    def _note_idle(self) -> None:
        self._board.note_requests(len(self._open), self._num_preparing)
        if self._open or self._num_preparing:
            self._idle.clear()
        else:
            self._idle.set()

    # --------------------------------------------------------------------------- requests

    @contextmanager
    def preparing(self, n: int = 1) -> Iterator[None]:
        """Hold room for `n` Submits while their prompt is made, so that excess is refused early.

        Raises Overloaded or EngineDied before any work is done.
        """
        self._admission.check(self._engines.values(), n, 0)
        self._hold(n)
        try:
            yield
        finally:
            self._hold(-n)

    def _hold(self, n: int) -> None:
        self._num_preparing += n
        self._metrics.hold(n)
        self._note_idle()

    def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        n: int = 1,
        priority: int = 0,
        cache_salt: bytes = b"",
        copy: int | None = None,
    ) -> Generation:
        """Submit `n` choices to engine `copy`, or that with the least to do; owns the prompt's
        leases.

        Choice i draws with a seed of its own, made from `sampling.seed`. Raises Overloaded,
        EngineDied, InvalidRequest for no such copy; the leases are then given back as always.
        """
        generation = Generation(prompt, n, self._abort)
        try:
            self._admission.check(self._engines.values(), n, prompt.num_tokens)
            copies = self._engines if self._copies is None else self._copies
            wish = None if copy is None else engine_of_copy(self._engines, copies, copy)
        except GlimtError:
            generation.answered(n)
            raise
        engine, work = choose(
            self._engines.values(),
            self._board,
            prompt,
            cache_salt,
            wish,
            weighs_caches=self._weighs_caches,
        )
        first = self._submit(prompt, sampling, priority, cache_salt)
        for choice in range(n):
            self._last_id += 1
            submit = msgspec.structs.replace(
                first, request_id=self._last_id, sampling=_for_choice(sampling, choice)
            )
            if not engine.send(submit):
                generation.close()
                generation.answered(n - choice)
                raise Overloaded("the engine takes no more requests now; try again later")
            work = work if choice == 0 else 1  # the others find the first one's prompt
            expected = work + min(sampling.max_tokens, _EXPECTED_ANSWER_TOKENS)
            request = OpenSubmit(engine, generation, choice, prompt.num_tokens, work, expected)
            self._opened(submit.request_id, request)
        return generation

    def _submit(
        self, prompt: Prompt, sampling: SamplingParams, priority: int, cache_salt: bytes
    ) -> Submit:
        """What the Submits of all choices have in common, without a request_id."""
        return Submit(
            request_id=0,
            server=self._server,
            token_ids=_int32(prompt.token_ids),
            positions=None if prompt.positions is None else _int32(prompt.positions),
            rope_delta=prompt.rope_delta,
            images=prompt.images,
            sampling=sampling,
            priority=priority,
            cache_salt=cache_salt,
            arrival_s=self._clock(),
        )

    def _opened(self, request_id: int, request: OpenSubmit) -> None:
        engine = request.engine
        self._open[request_id] = request
        engine.num_open += 1
        engine.outstanding_tokens += request.outstanding_tokens
        engine.waiting_tokens += request.num_prompt_tokens
        self._board.note_engine(engine.index, engine.outstanding_tokens, engine.waiting_tokens)
        request.generation.submitted(request_id)
        self._note_idle()

    def _abort(self, request_id: int) -> None:
        """Tell the engine, if it has not answered yet. It answers with a terminal output."""
        request = self._open.get(request_id)
        if request is not None and request.engine.index in self._engines:
            request.engine.send(Abort(self._server, request_id))


def _int32(ids: IntArray) -> bytes:
    """Little-endian, row by row, as wire messages have it."""
    return ids.astype("<i4", order="C", copy=False).tobytes()


def _for_choice(sampling: SamplingParams, choice: int) -> SamplingParams:
    if choice == 0:
        return sampling
    seed = (sampling.seed + choice * _SEED_STEP + 2**63) % 2**64 - 2**63
    return msgspec.structs.replace(sampling, seed=seed)
