"""Servers see what the others have open, and keep their limits together."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from glimt.arena import anonymous_file
from glimt.board import Board
from glimt.errors import Overloaded
from glimt.frontend.client import EngineClient
from glimt.frontend.prompt import Prompt
from glimt.metrics import Metrics
from glimt.wire import Output, Outputs, SamplingParams, Submit
from tests.test_metric_sum import INFO


@pytest.fixture
def fd() -> Iterator[int]:
    fd = anonymous_file("test")
    os.ftruncate(fd, Board.nbytes(2))
    yield fd
    os.close(fd)


class Half:
    """One server's client of two engines that only listen."""

    def __init__(self, fd: int, index: int) -> None:
        self.board = Board(fd, index, 2)
        self.client = EngineClient(
            clock=lambda: 1.0,
            metrics=Metrics(model_name="m"),
            server=index,
            max_waiting=2,
            board=self.board,
        )
        self.sent: dict[int, list[Any]] = {0: [], 1: []}
        for engine in (0, 1):
            self.client.add_engine(engine, self._send(engine), INFO)

    def _send(self, engine: int) -> Any:
        return lambda message: self.sent[engine].append(message) or True

    def ask(self, num_tokens: int = 4) -> None:
        tokens = np.arange(num_tokens, dtype=np.int32) + len(self.sent[0]) + len(self.sent[1])
        prompt = Prompt(token_ids=tokens, positions=None, rope_delta=0, images=(), leases=())
        self.client.generate(prompt, SamplingParams(max_tokens=2))

    def submits(self, engine: int) -> list[int]:
        return [each.request_id for each in self.sent[engine] if isinstance(each, Submit)]


def test_a_request_goes_to_the_engine_with_the_least_to_do_for_all_servers(fd: int) -> None:
    first, second = Half(fd, 0), Half(fd, 1)
    first.ask(40)
    assert first.submits(0), "the first of two idle engines"
    second.ask()
    assert second.submits(1), "the other server's work counts"


def test_the_queue_limit_holds_for_all_servers_together(fd: int) -> None:
    first, second = Half(fd, 0), Half(fd, 1)
    room = 2 * INFO.max_num_seqs + 2
    for turn in range(room):
        (first, second)[turn % 2].ask(1)
    assert first.client.num_held == second.client.num_held == room
    for full in (first, second):
        with pytest.raises(Overloaded):
            full.ask(1)
    engine = 0 if first.submits(0) else 1
    done = Output(first.submits(engine)[0], (1,), "stop")
    first.client.deliver(engine, Outputs((done,)))
    second.ask(1)


def test_a_dead_servers_row_is_cleared_and_it_counts_as_started(fd: int) -> None:
    first, second = Half(fd, 0), Half(fd, 1)
    first.board.note_started()
    assert not second.client.all_servers_started
    second.board.note_started()
    first.ask()
    with first.client.preparing():
        assert second.board.num_preparing_elsewhere == 1
        assert second.client.num_held == 2
    first.board.is_paused = True
    first.board.note_quiet(True)
    assert second.board.wants_quiet
    second.board.clear(0)
    assert second.board.is_paused, "until an operator ends it"
    assert not second.board.wants_quiet
    assert second.client.num_held == 0
    assert [second.board.outstanding_tokens(engine) for engine in (0, 1)] == [0, 0]
    assert second.client.all_servers_started
