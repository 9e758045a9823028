"""A simulated engine: answers every Submit as a real one must, without a model.

A request's next token is a hash of its seed and its history, unless a script says otherwise. A
step gives every running request some tokens, so tests decide how the world moves.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from glimt.experts.load import ExpertLoad
from glimt.frontend.client import EngineClient
from glimt.wire import (
    Abort,
    EngineInfo,
    EngineStats,
    ErrorInfo,
    Order,
    OrderDone,
    Output,
    Outputs,
    ResetCaches,
    Submit,
    TokenLogprobs,
)

INFO = EngineInfo(
    max_model_len=1024,
    vocab_size=320,
    num_pages=256,
    page_size=16,
    max_num_batched_tokens=1024,
    max_num_seqs=8,
    max_image_tokens=1024,
)

# Gives the tokens of an answer (without the limits, which the engine applies).
Script = Callable[[Submit], Sequence[int]]


@dataclass
class FakeRequest:
    """A Submit and what it has been given so far."""

    submit: Submit
    tokens: tuple[int, ...]
    num_given: int = 0


@dataclass
class FakeEngine:
    """Engine `index` of `client`; `step` moves it."""

    client: EngineClient
    script: Script
    index: int = 0
    info: EngineInfo = INFO
    tokens_per_step: int = 1
    submits: list[Submit] = field(default_factory=list)
    aborts: list[int] = field(default_factory=list)
    resets: list[ResetCaches] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    order_error: ErrorInfo | None = None  # with which orders are answered
    sleep_level: int = 0
    running: dict[int, FakeRequest] = field(default_factory=dict)
    aborted: list[int] = field(default_factory=list)  # not yet answered
    takes_messages: bool = True
    num_steps: int = 0
    sleepers: set[asyncio.Event] = field(default_factory=set)  # set when there is work

    def start(self) -> None:
        """Become an engine of the client."""
        self.client.add_engine(self.index, self.send, self.info)

    def send(self, message: msgspec.Struct) -> bool:
        """The client's way in. Messages pass through msgpack, as they do on the wire."""
        if not self.takes_messages:
            return False
        encoded = msgspec.msgpack.encode(message)
        received: Any = msgspec.msgpack.decode(encoded, type=Submit | Abort | ResetCaches | Order)
        if isinstance(received, ResetCaches):
            self.resets.append(received)
        elif isinstance(received, Order):
            self._carry_out(received)
        elif isinstance(received, Submit):
            self.submits.append(received)
            self.running[received.request_id] = FakeRequest(received, tuple(self.script(received)))
        else:
            self.aborts.append(received.request_id)
            if self.running.pop(received.request_id, None) is not None:
                self.aborted.append(received.request_id)
        for sleeper in self.sleepers:
            sleeper.set()
        return True

    def _carry_out(self, order: Order) -> None:
        """At once, as no real engine does."""
        self.orders.append(order)
        if self.order_error is None and order.kind in ("sleep", "wake"):
            self.sleep_level = order.level
        detail = "/profiles/a" if order.kind.endswith("profile") else ""
        if order.kind == "expert_load":
            load = ExpertLoad(num_experts=2, layers={1: (self.index, 5)}, seconds=3.0)
            detail = msgspec.json.encode(load).decode()
        done = OrderDone(order.order_id, detail, self.order_error)
        stats = EngineStats(sleep_level=self.sleep_level)
        message = msgspec.msgpack.encode(Outputs((), stats, (done,)))
        self.client.deliver(self.index, msgspec.msgpack.decode(message, type=Outputs))

    def step(self) -> int:
        """Give every request its next tokens; the number of outputs."""
        outputs = [Output(request_id, (), "abort") for request_id in self.aborted]
        self.aborted.clear()
        outputs += [self._advance(request) for request in list(self.running.values())]
        self.num_steps += 1
        stats = EngineStats(
            step=self.num_steps,
            num_running=len(self.running),
            num_pages=256,
            sleep_level=self.sleep_level,
        )
        self.deliver(*outputs, stats=stats)
        return len(outputs)

    def deliver(self, *outputs: Output, stats: EngineStats | None = None) -> None:
        """Hand outputs to the client, through msgpack."""
        message = msgspec.msgpack.encode(Outputs(outputs, stats))
        self.client.deliver(self.index, msgspec.msgpack.decode(message, type=Outputs))

    def fail(self, request_id: int, code: str, message: str) -> None:
        """End a request with an error."""
        del self.running[request_id]
        self.deliver(Output(request_id, (), "error", error=ErrorInfo(code, message)))

    def die(self, reason: str = "the engine died") -> None:
        """Vanish, answering nothing."""
        self.running.clear()
        self.client.remove_engine(self.index, reason)

    def _advance(self, request: FakeRequest) -> Output:
        submit, params = request.submit, request.submit.sampling
        left = params.max_tokens - request.num_given
        new: list[int] = []
        for token in request.tokens[request.num_given :][: min(left, self.tokens_per_step)]:
            new.append(token)
            if token in params.eos_token_ids or token in params.stop_token_ids:
                break
        request.num_given += len(new)
        reason = stop = None
        if new and (new[-1] in params.eos_token_ids or new[-1] in params.stop_token_ids):
            reason, stop = "stop", new[-1]
        elif request.num_given in (params.max_tokens, len(request.tokens)):
            reason = "length"
        if reason is not None:
            del self.running[submit.request_id]
        return Output(
            submit.request_id,
            tuple(new),
            reason,
            stop,
            logprobs=self._logprobs(new, params.logprobs),
            num_cached_tokens=min(4, len(submit.token_ids) // 4),
            scheduled_s=submit.arrival_s,
            prompt_logprobs=self._prompt_logprobs(submit, request.num_given - len(new)),
        )

    def _prompt_logprobs(self, submit: Submit, before: int) -> tuple[TokenLogprobs, ...] | None:
        count = submit.sampling.prompt_logprobs
        if count is None or before:
            return None
        ids = memoryview(submit.token_ids).cast("i").tolist()
        return tuple(
            TokenLogprobs(token, -1.5, 2, tuple((i, -0.5 - i) for i in range(count)))
            for token in ids[1:]
        )

    def _logprobs(self, tokens: list[int], count: int | None) -> tuple[TokenLogprobs, ...] | None:
        if count is None:
            return None
        return tuple(
            TokenLogprobs(
                token,
                -0.5,
                1,
                tuple((token + i, -0.5 - i if i < 2 else -float("inf")) for i in range(count)),
            )
            for token in tokens
        )


class Running:
    """Steps engines for as long as the `async with` lasts: one step per turn of the loop while
    there is something to do.
    """

    def __init__(self, *engines: FakeEngine) -> None:
        self._engines = engines
        self._work = asyncio.Event()

    async def __aenter__(self) -> None:
        for engine in self._engines:
            engine.sleepers.add(self._work)
        self._task = asyncio.create_task(self._run())

    async def __aexit__(self, *exc: object) -> None:
        for engine in self._engines:
            engine.sleepers.remove(self._work)
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            for engine in self._engines:
                engine.step()
            if any(engine.running for engine in self._engines):
                await asyncio.sleep(0)
            else:
                self._work.clear()
                await self._work.wait()
