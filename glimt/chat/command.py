"""`glimt chat`, from its arguments to its exit status."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn, TextIO
from urllib.parse import urlsplit

from glimt.builtin import model as builtin
from glimt.chat.attachments import BadAttachment
from glimt.chat.conversation import Conversation
from glimt.chat.image_tokens import image_token_counter
from glimt.chat.lines import Lines, PipedLines, TypedLines, state_folder
from glimt.chat.local_server import LocalServer
from glimt.chat.screen import Look, Screen, look_of
from glimt.chat.server import AskFailed, ChatServer, base_url_of
from glimt.chat.session import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    Asking,
    Session,
    Surroundings,
)
from glimt.chat.wishes import ChatWishes, check
from glimt.errors import BadSettings, StartupError

_EXIT_SIGNALLED = 128


@dataclass(frozen=True)
class _Place:
    """A server that answers, and what is known of it."""

    server: ChatServer
    model: str | None  # its name there; None = the first that is listed
    surroundings: Surroundings


def chat(model: str | None, wishes: ChatWishes) -> int:
    """Do it; the exit status. Raises StartupError for whatever is refused before the chat."""
    check(model, wishes)
    model = model or wishes.model_name
    screen = _screen(wishes)
    before = {each: signal.signal(each, _leave) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with ExitStack() as open_things:
            place = _place(model, wishes, screen, open_things)
            return _talk(wishes, screen, place)
    except KeyboardInterrupt:
        screen.status("")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read the answers has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _talk(wishes: ChatWishes, screen: Screen, place: _Place) -> int:
    try:
        model = place.model or asyncio.run(place.server.model_names())[0]
    except AskFailed as error:
        raise StartupError(str(error)) from None
    thinking = None if wishes.thinking is None else wishes.thinking == "on"
    asking = Asking(model, thinking, wishes.options())
    session = Session(place.server, asking, Conversation(wishes.system), screen, place.surroundings)
    screen.say(f"{model} at {place.server.base_url} · /help lists commands, Ctrl-D leaves")
    try:
        session.attach("image", wishes.image or [])
        session.attach("video", wishes.video or [])
    except BadAttachment as error:
        raise BadSettings(str(error)) from None
    if wishes.once is not None:
        return session.once(wishes.once)
    lines = _lines(screen)
    try:
        return session.run(lines)
    finally:
        lines.close()


def _place(model: str | None, wishes: ChatWishes, screen: Screen, open_things: ExitStack) -> _Place:
    """A server that runs already, or one that is started here and ends with `open_things`."""
    if wishes.base_url is not None:
        base_url = base_url_of(wishes.base_url)
        return _Place(ChatServer(base_url, _api_key(wishes, base_url)), model, Surroundings())
    model = model or builtin.NAME
    if model == builtin.NAME:
        builtin.model_folder()  # refuses now what the server would refuse in its log
    log = state_folder(os.environ) / f"serve-{os.getpid()}.log"
    local = open_things.enter_context(LocalServer(model, log, os.environ))
    what = "the built-in model" if model == builtin.NAME else model

    watched = screen
    if not screen.look.is_terminal:  # somebody may still look at the errors
        watched = Screen(sys.stderr, sys.stderr, look_of(sys.stderr, os.environ))
    if not watched.look.can_erase:
        watched.say(f"starting {what}")

    def tell(line: str, seconds: float) -> None:
        watched.status(f"starting {what}, {seconds:.0f} s: {line}")

    try:
        base_url = local.wait_until_ready(tell)
    finally:
        watched.status("")
    surroundings = Surroundings(local.last_words, image_token_counter(model))
    return _Place(ChatServer(base_url, local.api_key), None, surroundings)


def _api_key(wishes: ChatWishes, base_url: str) -> str | None:
    """The key as given; OpenAI's own only goes to OpenAI."""
    if wishes.api_key is None and urlsplit(base_url).hostname == "api.openai.com":
        return os.environ.get("OPENAI_API_KEY")
    return wishes.api_key


def _screen(wishes: ChatWishes) -> Screen:
    """Answers for people if somebody sits at both ends, else for programs."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        _tolerate_any_text(stream)
    is_for_people = sys.stdout.isatty() and (sys.stdin.isatty() or wishes.once is not None)
    look = look_of(sys.stdout, os.environ) if is_for_people else Look()
    return Screen(sys.stdout, sys.stdout if is_for_people else sys.stderr, look, wishes.preview)


def _tolerate_any_text(stream: TextIO) -> None:
    reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def _lines(screen: Screen) -> Lines:
    if not screen.look.is_terminal:
        return PipedLines(sys.stdin)
    history = state_folder(os.environ) / "chat_history"
    return TypedLines(history, bold_prompt=screen.look.colours != "none")


def _leave(signum: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(_EXIT_SIGNALLED + signum)
