"""The chat itself: read a line, do the command or ask the question, until the end."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from glimt.chat.attachments import Attachment, BadAttachment, Kind, attach, describe
from glimt.chat.boxes import Box, boxes_in, picture_of
from glimt.chat.commands import HELP, BadCommand, names_in, parse
from glimt.chat.conversation import Conversation, Question
from glimt.chat.lines import Lines
from glimt.chat.preview import preview
from glimt.chat.screen import Screen, screen_size
from glimt.chat.server import AskFailed, ChatServer
from glimt.chat.transcript import NotSaved, save
from glimt.chat.view import AnswerView

_MAX_PREVIEW_COLUMNS = 64

EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130

Outcome = Literal["answered", "stopped", "failed"]


@dataclass
class Asking:
    """What goes with every question."""

    model: str
    thinking: bool | None = None  # None = as the server does by itself
    options: dict[str, Any] = field(default_factory=dict)  # further fields of the request

    def body(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """The request's body. What the user did not ask for is left to the server."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.options,
        }
        if self.thinking is not None:
            body["chat_template_kwargs"] = {"enable_thinking": self.thinking}
        return body


@dataclass(frozen=True)
class Surroundings:
    """What can be asked about the server and its model, where that is known."""

    diagnose: Callable[[], str | None] = lambda: None  # why nobody answers
    image_tokens: Callable[[int, int], int | None] = lambda width, height: None


class Session:
    """One chat, from its first line to its exit status."""

    def __init__(
        self,
        server: ChatServer,
        asking: Asking,
        conversation: Conversation,
        screen: Screen,
        surroundings: Surroundings,
    ) -> None:
        self._server = server
        self._asking = asking
        self._conversation = conversation
        self._screen = screen
        self._surroundings = surroundings
        self._saved: set[Path] = set()
        self._has_failed = False
        self._is_over = False
        self._commands: dict[str, Callable[[str], None]] = {
            "image": lambda names: self.attach("image", names_in(names)),
            "video": lambda names: self.attach("video", names_in(names)),
            "clear": self._clear,
            "retry": self._retry,
            "system": self._system,
            "thinking": self._thinking,
            "save": self._save,
            "help": lambda _: self._screen.say(HELP),
            "quit": self._quit,
        }

    def run(self, lines: Lines) -> int:
        """Answer every line until the end; the exit status."""
        while not self._is_over:
            try:
                line = lines.read()
                if line is None:
                    break
                self._do(line)
            except KeyboardInterrupt:
                if not lines.is_typed:
                    return EXIT_INTERRUPTED
                self._screen.say("" if lines.was_typing else "\n/quit or Ctrl-D leaves")
        return EXIT_FAILED if self._has_failed and not lines.is_typed else EXIT_OK

    def once(self, text: str) -> int:
        """Answer one question; the exit status."""
        outcome = self._ask(self._conversation.ask(text))
        return {"answered": EXIT_OK, "stopped": EXIT_INTERRUPTED, "failed": EXIT_FAILED}[outcome]

    def attach(self, kind: Kind, names: list[str]) -> None:
        """Attach files and addresses to the next question. Raises BadAttachment."""
        for name in names:
            attachment = attach(kind, name)
            self._conversation.pending.append(attachment)
            if kind == "image":
                self._preview(attachment)
            num_tokens = None
            if attachment.size is not None:
                num_tokens = self._surroundings.image_tokens(*attachment.size)
            self._screen.say(describe(attachment, num_tokens))

    def _preview(self, picture: Attachment, boxes: Sequence[Box] = ()) -> None:
        if picture.content is None or not self._screen.with_preview:
            return
        columns, rows = screen_size()
        size = min(columns - 1, _MAX_PREVIEW_COLUMNS), max(4, rows // 2)
        self._screen.draw(preview(picture.content, self._screen.look.colours, *size, boxes))

    def _show_boxes(self, answer: str) -> None:
        boxes, picture = boxes_in(answer), picture_of(self._conversation)
        if boxes and picture is not None:
            self._preview(picture, boxes)

    def _do(self, line: str) -> None:
        text = line.strip()
        try:
            if text.startswith("/") and not text.startswith("//"):
                name, argument = parse(text)
                self._commands[name](argument)
            elif text:
                self._ask_and_go_on(self._conversation.ask(text.removeprefix("/")))
        except (BadAttachment, BadCommand, NotSaved) as error:
            self._fail(str(error))

    def _fail(self, message: str) -> None:
        self._has_failed = True
        self._screen.complain(message)

    # ------------------------------------------------------------------------------- asking

    def _ask_and_go_on(self, question: Question) -> None:
        if self._ask(question) == "stopped" and not self._screen.look.is_terminal:
            raise KeyboardInterrupt  # nobody is there to ask something else

    def _ask(self, question: Question) -> Outcome:
        """Ask, show what comes, and keep it."""
        view = AnswerView(self._screen.out, self._screen.look)
        outcome: Outcome = "answered"
        failure = None
        try:
            asyncio.run(self._stream(question, view))
        except KeyboardInterrupt:
            outcome = "stopped"
        except AskFailed as error:
            failure = error
        finally:
            view.end()
        if failure is not None:
            self._conversation.take_back(question)
            self._explain(failure)
            return "failed"
        if outcome == "stopped" and not view.reply.content.strip():
            self._conversation.take_back(question)
            self._screen.say("stopped before the answer; the question is taken back (/retry)")
            return outcome
        self._conversation.keep(question, view.reply)
        self._show_boxes(view.reply.content)
        if self._screen.look.is_terminal:
            self._screen.say(view.summary() + (" · stopped" if outcome == "stopped" else ""))
        elif view.reply.finish_reason == "length":
            self._screen.complain("the answer was cut at the token limit")
        return outcome

    async def _stream(self, question: Question, view: AnswerView) -> None:
        body = self._asking.body(self._conversation.messages(question))
        async with view.waiting(), aclosing(self._server.ask(body)) as deltas:
            async for delta in deltas:
                view.add(delta)

    def _explain(self, error: AskFailed) -> None:
        self._fail(str(error))
        if error.is_unreachable and (reason := self._surroundings.diagnose()) is not None:
            self._screen.complain(reason)
        self._screen.say("the question is taken back; /retry asks it again")

    # ------------------------------------------------------------------------------ commands

    def _clear(self, _: str) -> None:
        self._conversation.clear()
        self._screen.say("cleared")

    def _retry(self, _: str) -> None:
        question = self._conversation.retry()
        if question is None:
            raise BadCommand("there is no question to ask again")
        self._screen.say(f"> {question.text}")
        self._ask_and_go_on(question)

    def _system(self, text: str) -> None:
        if text:
            self._conversation.system = None if text == "off" else text
        self._screen.say(f"system text: {self._conversation.system or 'none'}")

    def _thinking(self, wish: str) -> None:
        if wish not in ("", "on", "off"):
            raise BadCommand(f"/thinking takes on or off, not {wish}")
        if wish:
            self._asking.thinking = wish == "on"
        words = {True: "on", False: "off", None: "left to the server"}
        self._screen.say(f"thinking: {words[self._asking.thinking]}")

    def _save(self, name: str) -> None:
        if not self._conversation.turns:
            raise BadCommand("there is nothing to save yet")
        file = Path(name).expanduser()
        save(self._conversation, self._asking.model, file, overwrite=file.absolute() in self._saved)
        self._saved.add(file.absolute())
        self._screen.say(f"saved {file}")

    def _quit(self, _: str) -> None:
        self._is_over = True
