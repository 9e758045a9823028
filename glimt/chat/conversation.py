"""A conversation: the turns so far, what will go with the next question, and what it becomes."""

from dataclasses import dataclass, field
from typing import Any

from glimt.chat.attachments import Attachment


@dataclass(frozen=True, slots=True)
class Question:
    """What the user says, with its images and videos."""

    text: str
    attachments: tuple[Attachment, ...] = ()

    def message(self) -> dict[str, Any]:
        """As the API takes it: media first, then the text, as the family was trained."""
        if not self.attachments:
            return {"role": "user", "content": self.text}
        parts: list[dict[str, Any]] = [each.part() for each in self.attachments]
        return {"role": "user", "content": [*parts, {"type": "text", "text": self.text}]}


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said. A reply that was stopped holds what had come."""

    content: str
    reasoning: str = ""
    finish_reason: str | None = None  # None = it was stopped

    def message(self) -> dict[str, Any]:
        """As the API takes it back: without its thoughts, as templates of this family want it."""
        return {"role": "assistant", "content": self.content}


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its reply."""

    question: Question
    reply: Reply


@dataclass
class Conversation:
    """A question joins the turns together with its reply, so a failed one leaves nothing behind."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    pending: list[Attachment] = field(default_factory=list)
    _taken_back: Question | None = None

    def ask(self, text: str) -> Question:
        """A question with everything that was attached for it."""
        question = Question(text, tuple(self.pending))
        self.pending.clear()
        self._taken_back = None
        return question

    def messages(self, question: Question | None = None) -> list[dict[str, Any]]:
        """The messages of a request that asks `question`; without one, those so far."""
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for turn in self.turns:
            messages += (turn.question.message(), turn.reply.message())
        if question is not None:
            messages.append(question.message())
        return messages

    def keep(self, question: Question, reply: Reply) -> None:
        """The question was answered, wholly or in part."""
        self.turns.append(Turn(question, reply))

    def take_back(self, question: Question) -> None:
        """The question failed: as if it had never been asked, but `retry` finds it."""
        self._taken_back = question

    def retry(self) -> Question | None:
        """The question to ask again: one that was taken back, else the last, without its reply.

        None if there is none.
        """
        question, self._taken_back = self._taken_back, None
        if question is None and self.turns:
            question = self.turns.pop().question
        return question

    def clear(self) -> None:
        """Forget everything but the system text."""
        self.turns.clear()
        self.pending.clear()
        self._taken_back = None
