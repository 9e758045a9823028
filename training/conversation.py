"""A conversation as it is being drawn: messages, media, and which answers shall be learnt."""

import random
from dataclasses import dataclass, field
from typing import Any

from training.scenes.scene import Scene
from training.scenes.turn import Turn

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Clip:
    """A picture (one scene) or a short video (a scene for each frame)."""

    scenes: tuple[Scene, ...]
    is_video: bool = False


@dataclass
class Conversation:
    """Messages as the chat template takes them, the media in their order, and what is learnt.

    `skills[i]` is the skill of the i-th assistant message, or None for one that is only history;
    `turns` are the questions with their answers, for an evaluation.
    """

    messages: list[Json] = field(default_factory=list)
    tools: list[Json] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    skills: list[str | None] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    thinking: bool = False


def say(
    conversation: Conversation, turns: list[Turn], clips: list[Clip], rng: random.Random
) -> None:
    """Append the turns; media stand in the first of them, mostly before the words. A model that
    thinks is taught by its last answer alone, for the template empties earlier thoughts."""
    places = [{"type": "video" if clip.is_video else "image"} for clip in clips]
    for index, turn in enumerate(turns):
        content: str | list[Json] = turn.question
        if index == 0 and places:
            words: list[Json] = [{"type": "text", "text": turn.question}]
            content = [*words, *places] if rng.random() < 0.15 else [*places, *words]
        conversation.messages.append({"role": "user", "content": content})
        is_last = index == len(turns) - 1
        thinks = conversation.thinking and is_last
        conversation.messages.append(assistant_message(turn, thinks))
        conversation.skills.append(turn.skill if is_last or not conversation.thinking else None)
    conversation.turns += turns
    conversation.clips += clips


def assistant_message(turn: Turn, thinks: bool) -> Json:
    """The turn's answer or call as a message, with its thought if the model thinks."""
    message: Json = {"role": "assistant", "content": turn.answer}
    if thinks:
        message["reasoning_content"] = turn.thought
    if turn.call is not None:
        message["tool_calls"] = [{"type": "function", "function": turn.call}]
    return message
