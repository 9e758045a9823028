"""Generation: the reading end of one request; outputs of all its choices in one mailbox.

The engine's client puts outputs in, one reader takes them out. A prompt's leases (its pixels in
shared memory) are given back exactly once, when every Submit of the generation has had its
terminal output, or its engine is gone; not when the reader leaves, because until then the engine
may still read the pixels.
"""

import asyncio
from collections.abc import Callable

from glimt.errors import (
    BadGrammar,
    EngineAsleep,
    EngineDied,
    EngineFailed,
    GlimtError,
    InvalidRequest,
    NumericalError,
    Overloaded,
    PromptTooLong,
    StepFailed,
    Unsupported,
)
from glimt.frontend.prompt import Prompt
from glimt.wire import ErrorInfo, Output

_ERRORS: dict[str, type[GlimtError]] = {
    kind.code: kind
    for kind in (
        InvalidRequest,
        Unsupported,
        BadGrammar,
        PromptTooLong,
        Overloaded,
        EngineDied,
        EngineAsleep,
        StepFailed,
        NumericalError,
    )
}


class Generation:
    """The outputs of one request, as they arrive; made by `EngineClient.generate`.

    Iterate (`async for output in generation`), or take all that has arrived with `receive`. Close
    it in any case (`close`, or `contextlib.aclosing`): what still runs is then aborted. A reader
    that is cancelled while it waits closes it too.
    """

    def __init__(self, prompt: Prompt, n: int, abort: Callable[[int], None]) -> None:
        self._prompt = prompt
        self._abort = abort
        self._request_ids: list[int] = []  # by choice
        self._num_unanswered = n  # Submits without terminal output: the engine may read pixels
        self._wanted = set(range(n))  # choices whose end the reader has not been given
        self._arrived: list[tuple[int, Output]] = []
        self._error: GlimtError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def receive(self) -> list[tuple[int, Output]]:
        """All (choice, output) that arrived since, in order; waits for the first; [] = the end.

        Raises the typed error that ended the request: EngineFailed and below, Overloaded,
        InvalidRequest or PromptTooLong.
        """
        while not self._arrived:
            if self._error is not None:
                raise self._error
            if not self._wanted:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.close()
                raise
            finally:
                self._waiter = None
        arrived, self._arrived = self._arrived, []
        return arrived

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> Output:
        """The next output, of any choice."""
        arrived = await self.receive()
        if not arrived:
            raise StopAsyncIteration
        self._arrived = [*arrived[1:], *self._arrived]
        return arrived[0][1]

    def abort(self, choice: int) -> None:
        """The reader wants no more of this choice. Ignored when the choice has ended."""
        if choice in self._wanted:
            self._wanted.discard(choice)
            if choice < len(self._request_ids):
                self._abort(self._request_ids[choice])
            self._wake()

    def close(self) -> None:
        """The reader wants nothing more: end all choices, drop what has arrived."""
        for choice in sorted(self._wanted):
            self.abort(choice)
        self._arrived = []

    async def aclose(self) -> None:
        """`close`, in the form that `contextlib.aclosing` wants."""
        self.close()

    # The client's side.

    def submitted(self, request_id: int) -> None:
        """The next choice was sent to an engine."""
        self._request_ids.append(request_id)

    def put(self, choice: int, output: Output) -> None:
        """An output has come. A terminal one answers the choice's Submit, wanted or not."""
        if output.finish_reason is not None:
            self.answered()
        if choice not in self._wanted:
            return
        if output.finish_reason in ("error", "abort") or output.error is not None:
            self._wanted.discard(choice)
            self.fail(error_of(output.error))
            return
        if output.finish_reason is not None:
            self._wanted.discard(choice)
        self._arrived.append((choice, output))
        self._wake()

    def fail(self, error: GlimtError) -> None:
        """End with an error once what has arrived is read; other choices are of no use then."""
        self._error = self._error or error
        for choice in sorted(self._wanted):
            self.abort(choice)
        self._wake()

    def answered(self, num_submits: int = 1) -> None:
        """So many Submits are answered, or were never sent; the last gives the leases back."""
        self._num_unanswered -= num_submits
        if self._num_unanswered == 0:
            self._prompt.release()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def error_of(info: ErrorInfo | None) -> GlimtError:
    """The error of an output or an order; an abort that nobody asked for is a shutdown."""
    if info is None:
        return EngineDied("the engine ended the request before its answer was complete")
    return _ERRORS.get(info.code, EngineFailed)(info.message)
