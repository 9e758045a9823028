"""A conversation stays one that a server takes, whatever fails in between."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from glimt.chat.attachments import Attachment
from glimt.chat.conversation import Conversation, Question, Reply
from glimt.chat.transcript import NotSaved, as_json, as_markdown, save

CAT = Attachment("image", "cat.png", "data:image/png;base64,Y2F0")
CLIP = Attachment("video", "clip.mp4", "https://example.com/clip.mp4")


class Conversations(RuleBasedStateMachine):
    """Against a plain list of (text, media, reply)."""

    def __init__(self) -> None:
        super().__init__()
        self.conversation = Conversation()
        self.turns: list[tuple[str, int, str]] = []
        self.pending = 0
        self.again: Question | None = None
        self.num = 0

    @rule(attachment=st.sampled_from([CAT, CLIP]))
    def attach(self, attachment: Attachment) -> None:
        self.conversation.pending.append(attachment)
        self.pending += 1

    @rule(is_answered=st.booleans())
    def ask(self, is_answered: bool) -> None:
        self.num += 1
        question = self.conversation.ask(f"q{self.num}")
        assert self.conversation.messages(question)[-1]["role"] == "user"
        assert len(question.attachments) == self.pending
        self.pending, self.again = 0, None
        self._end(question, is_answered)

    @rule(is_answered=st.booleans())
    def retry(self, is_answered: bool) -> None:
        question = self.conversation.retry()
        if question is None:
            assert not self.turns
            assert self.again is None
            return
        if self.again is None:
            assert question.text == self.turns.pop()[0]
        else:
            assert question is self.again
        self.again = None
        self._end(question, is_answered)

    def _end(self, question: Question, is_answered: bool) -> None:
        if is_answered:
            self.conversation.keep(question, Reply(f"a{self.num}", "thought", "stop"))
            self.turns.append((question.text, len(question.attachments), f"a{self.num}"))
        else:
            self.conversation.take_back(question)
            self.again = question

    @precondition(lambda self: self.turns)
    @rule()
    def clear(self) -> None:
        self.conversation.clear()
        self.turns, self.pending, self.again = [], 0, None

    @rule(text=st.sampled_from([None, "Be brief."]))
    def system(self, text: str | None) -> None:
        self.conversation.system = text

    @invariant()
    def messages_are_the_turns(self) -> None:
        messages = self.conversation.messages()
        if self.conversation.system:
            assert messages.pop(0) == {"role": "system", "content": "Be brief."}
        assert [each["role"] for each in messages] == ["user", "assistant"] * len(self.turns)
        pairs = zip(messages[::2], messages[1::2], strict=True)
        assert [(*_text_and_media(user), reply["content"]) for user, reply in pairs] == self.turns


def _text_and_media(message: dict[str, Any]) -> tuple[str, int]:
    content = message["content"]
    if isinstance(content, str):
        return content, 0
    return content[-1]["text"], len(content) - 1


TestConversations = Conversations.TestCase


@pytest.fixture
def conversation() -> Conversation:
    conversation = Conversation(system="Be brief.", pending=[CAT, CLIP])
    conversation.keep(
        conversation.ask("What?"), Reply("A \x1b[31mcat\ud800.", "It has\nwhiskers.", "stop")
    )
    conversation.keep(conversation.ask("Why?"), Reply("Becau"))
    return conversation


def test_media_go_before_the_text_and_thoughts_do_not_go_back(conversation: Conversation) -> None:
    system, user, assistant, *_ = conversation.messages()
    assert system["role"] == "system"
    assert [part["type"] for part in user["content"]] == ["image_url", "video_url", "text"]
    assert set(assistant) == {"role", "content"}


def test_saved_as_json_it_can_be_sent_again(conversation: Conversation) -> None:
    saved = json.loads(as_json(conversation, "m"))
    assert saved["model"] == "m"
    assert saved["messages"][2].pop("reasoning") == "It has\nwhiskers."
    assert saved["messages"] == conversation.messages()


def test_saved_as_markdown_it_can_be_read_and_shown(conversation: Conversation) -> None:
    text = as_markdown(conversation, "m")
    assert "*image: cat.png*\n\n*video: clip.mp4*\n\nWhat?" in text
    assert "> It has\n> whiskers.\n\nA ␛[31mcat\ufffd." in text
    assert text.endswith("Becau\n\n*(stopped)*\n")
    assert "base64" not in text


def test_saving_overwrites_only_what_it_may(conversation: Conversation, tmp_path: Path) -> None:
    for name in ("a.md", "b.json"):
        save(conversation, "m", tmp_path / name, overwrite=False)
        with pytest.raises(NotSaved, match="exists"):
            save(conversation, "m", tmp_path / name, overwrite=False)
        save(conversation, "m", tmp_path / name, overwrite=True)
    with pytest.raises(NotSaved, match=r"\.md .* or \.json"):
        save(conversation, "m", tmp_path / "c.txt", overwrite=False)
    with pytest.raises(NotSaved, match="cannot be written"):
        save(conversation, "m", tmp_path / "missing" / "c.md", overwrite=False)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.md", "b.json"]
