"""Images that are encoded behind steps, where steps are taken together with another replica."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache

import pytest

from glimt.engine.lockstep import Wave
from glimt.engine.loop import EngineLoop
from glimt.engine.scheduler import Scheduler
from glimt.wire import Abort, EngineMessage, Output, Outputs
from tests.support.schedules import Schedule
from tests.support.slow_tower import LIMITS
from tests.support.slow_tower import block_behind_each_step as block_behind_each_step
from tests.support.tiny_model import Album, Ask, make_ask, make_executor, tiny_model

pytestmark = pytest.mark.usefixtures("block_behind_each_step")

KIND = "glm4v"
ALBUM = Album()
DECODES, SLEEPS = [1, 1, 1], [0, 1, 0]


class Mail:
    """Messages for the next turn, and what was answered."""

    def __init__(self) -> None:
        self.messages: deque[EngineMessage] = deque()
        self.outputs: list[Output] = []

    def receive(self, timeout_s: float) -> list[EngineMessage]:
        messages = [*self.messages]
        self.messages.clear()
        return messages

    def send(self, server: int, outputs: Outputs) -> None:
        self.outputs += outputs.outputs

    def tokens(self, request_id: int) -> list[int]:
        mine = [output for output in self.outputs if output.request_id == request_id]
        return [token for output in mine for token in output.token_ids]

    def error(self, request_id: int) -> str | None:
        [error] = [o.error for o in self.outputs if o.request_id == request_id and o.finish_reason]
        return None if error is None else error.code


@cache
def ask(layout: str, max_tokens: int) -> Ask:
    return make_ask(ALBUM, layout, 1, max_tokens=max_tokens)


@cache
def alone(layout: str, max_tokens: int) -> list[int]:
    executor = make_executor(tiny_model(KIND), ALBUM)
    return Schedule(executor, [ask(layout, max_tokens)], whole=True).run()[0]


def make_loop(mail: Mail, other: Callable[[], Sequence[int]]) -> EngineLoop:
    """A replica that takes its steps with another one, which says `other` in each round."""
    wave = Wave(lambda numbers: [[*numbers], [*other()]], lambda number: None)
    executor = make_executor(tiny_model(KIND), ALBUM)
    return EngineLoop(Scheduler(LIMITS), executor, mail, wave=wave, overlap=False)


def test_an_image_that_became_ready_behind_a_step_without_work_keeps_nobody_waiting() -> None:
    mail = Mail()
    loop = make_loop(mail, lambda: DECODES)
    mail.messages += [ask("tt", 40).submit(1), ask("tbt", 4).submit(2)]
    loop.turn()
    mail.messages += [Abort(0, 1), Abort(0, 2)]
    for _ in range(3):
        loop.turn()  # the rest of the image is encoded here, behind the other's steps
    mail.messages.append(ask("tt", 40).submit(3))
    loop.turn()
    mail.messages.append(ask("tbt", 4).submit(4))
    for _ in range(8):
        loop.turn()
    assert mail.tokens(4) == alone("tbt", 4)
    assert 0 < len(mail.tokens(3)) < 40


def test_who_has_a_row_and_no_work_yet_survives_a_step_that_a_sleeping_replica_prevents() -> None:
    mail = Mail()
    said = deque([DECODES, SLEEPS])
    loop = make_loop(mail, lambda: said.popleft() if said else DECODES)
    mail.messages.append(ask("tt", 40).submit(1))
    loop.turn()
    mail.messages.append(ask("tbt", 4).submit(2))
    for _ in range(8):
        loop.turn()
    assert mail.error(1) == "asleep"
    assert mail.error(2) is None
    assert mail.tokens(2) == alone("tbt", 4)
