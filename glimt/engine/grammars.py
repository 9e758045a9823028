"""Grammars: requests that wait for their grammar to be compiled, and the masks of each step."""

from collections.abc import Iterable
from concurrent.futures import Future

import numpy as np

from glimt.engine.constraint import Constraint
from glimt.engine.plan import TokenMasks
from glimt.engine.request import Request, RequestState
from glimt.errors import GlimtError, InvalidRequest
from glimt.grammar.compiler import GrammarCompiler
from glimt.grammar.matcher import Matcher
from glimt.grammar.vocabulary import Bits, bits_of
from glimt.wire import Grammar

Failure = tuple[Request, GlimtError]


class Grammars:
    """Owns the engine's compiled grammars; the state of one answer belongs to its request."""

    def __init__(self, compiler: GrammarCompiler | None, vocab_size: int) -> None:
        self._compiler = compiler
        self._vocab_size = vocab_size
        self._compiling: list[tuple[Request, Grammar, Future[Matcher]]] = []

    @property
    def num_compiling(self) -> int:
        """Requests that wait for their grammar."""
        return len(self._compiling)

    def close(self) -> None:
        """End the thread that compiles."""
        if self._compiler is not None:
            self._compiler.close()

    def start(self, request: Request, grammar: Grammar) -> None:
        """Have the grammar of a request compiled."""
        if self._compiler is None:
            raise InvalidRequest("this engine has no vocabulary for grammars", param="grammar")
        self._compiling.append((request, grammar, self._compiler.start(grammar.text)))

    def take_ready(self) -> tuple[list[Request], list[Failure]]:
        """The requests that can go on now, and those that never can. Ended ones are forgotten."""
        ready: list[Request] = []
        failed: list[Failure] = []
        compiling: list[tuple[Request, Grammar, Future[Matcher]]] = []
        for request, grammar, compiled in self._compiling:
            if request.state is not RequestState.COMPILING:
                continue
            if not compiled.done():
                compiling.append((request, grammar, compiled))
                continue
            try:
                eos_token_ids = request.submit.sampling.eos_token_ids
                request.ready(Constraint(grammar, compiled.result(), eos_token_ids))
                ready.append(request)
            except GlimtError as error:
                failed.append((request, error))
        self._compiling = compiling
        return ready, failed

    def masks(
        self, drawing: Iterable[tuple[int, Request]]
    ) -> tuple[TokenMasks, list[Request], list[Failure]]:
        """Masks of those (row, request) that are under a grammar or have to end their thoughts; the
        requests among them whose answer is complete without another token, and those whose grammar
        failed."""
        rows: list[int] = []
        masks: list[Bits] = []
        complete: list[Request] = []
        failed: list[Failure] = []
        for row, request in drawing:
            forced = None if request.thought_limit is None else request.thought_limit.forced
            if forced is not None:
                rows.append(row)
                masks.append(bits_of((forced,), self._vocab_size))
                continue
            if request.constraint is None:
                continue
            bits_W = np.empty(request.constraint.num_words, np.uint32)
            try:
                goes_on = request.constraint.fill(bits_W)
            except GlimtError as error:
                failed.append((request, error))
                continue
            if goes_on:
                rows.append(row)
                masks.append(bits_W)
            else:
                complete.append(request)
        bits_GW = np.stack(masks).view(np.int32) if masks else np.zeros((0, 0), np.int32)
        return TokenMasks(tuple(rows), bits_GW), complete, failed
