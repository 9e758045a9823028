"""Tells a reply's thoughts from its content, by token ids, as the reply comes (glm45).

    reply := [ whitespace ] [ "<think>" thoughts "</think>" ] [ whitespace ] content

GLM itself chooses whether to think, and writes `<think>`. So a reply starts undecided, unless
the prompt's last turn has already opened the pair (thoughts) or closed it (content):

    undecided ── <think> ──▶ thinking ── </think> or <tool_call> ──▶ content ── <think> ──▶ thinking
    undecided ── </think> ─▶ content, as all before it: a stream has told it so, and a whole answer
                             says what the stream of it does

A reply that stays undecided is content; one that never closes its thoughts is all thought.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from glimt.frontend.prompt import IntArray
from glimt.frontend.tokenizer import Tokenizer

Channel = Literal["undecided", "reasoning", "content"]

_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_ANSWER_TAGS = ("<answer>", "</answer>")


@dataclass(frozen=True)
class ReasoningTokens:
    """The ids that give a reply its structure."""

    begin: int  # <think>
    end: int  # </think>
    tool_call: int | None
    answer_tags: frozenset[int]  # of GLM-4.1V; dropped
    roles: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ReasoningTokens | None":
        """Looked up by text; None if the tokenizer has no tokens for thoughts."""
        known = tokenizer.control_tokens
        if "<think>" not in known or "</think>" not in known:
            return None
        return cls(
            begin=known["<think>"],
            end=known["</think>"],
            tool_call=known.get("<tool_call>"),
            answer_tags=frozenset(known[tag] for tag in _ANSWER_TAGS if tag in known),
            roles=frozenset(known[role] for role in _ROLES if role in known),
        )

    def channel_after(self, prompt_ids: IntArray) -> Channel:
        """Where a reply to this prompt starts. Only the last turn counts: earlier ones hold pairs
        of their own."""
        turns = np.flatnonzero(np.isin(prompt_ids, list(self.roles)))
        turn = prompt_ids[turns[-1] + 1 :] if len(turns) else prompt_ids
        marks = turn[(turn == self.begin) | (turn == self.end)]
        if len(marks) == 0:
            return "undecided"
        return "reasoning" if marks[-1] == self.begin else "content"


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of one channel, without marks."""

    channel: Channel
    token_ids: Sequence[int]
    is_start: bool = False  # a mark stood before it: whitespace at its start means nothing
    is_stray: bool = False  # that mark was a </think> that nothing opened


class ReasoningSplitter:
    """Splits the tokens of one reply. Pieces do not depend on how the tokens are cut into pushes,
    except that a piece may come in several."""

    def __init__(self, tokens: ReasoningTokens, prompt_ids: IntArray) -> None:
        self._tokens = tokens
        self.channel: Channel = tokens.channel_after(prompt_ids)
        self.num_reasoning_tokens = 0  # without the marks
        known = {tokens.begin, tokens.end, tokens.tool_call, *tokens.answer_tags}
        self._marks = frozenset(known - {None})

    def pass_plain(self, token_ids: Sequence[int]) -> bool:
        """Count the tokens if there is no mark among them, in a fraction of `push`'s time.

        They are one piece of the present channel then. False: nothing was done, push them.
        """
        if not self._marks.isdisjoint(token_ids):
            return False
        self._count(len(token_ids))
        return True

    def push(self, token_ids: Sequence[int]) -> Iterator[Piece]:
        """The pieces of these tokens, which may be empty. Exhaust it before the next push."""
        first = 0
        for index, token_id in enumerate(token_ids):
            if not self._is_mark(token_id):
                continue
            yield self._piece(token_ids[first:index])
            yield self._turn(token_id)
            first = index if token_id == self._tokens.tool_call else index + 1
        yield self._piece(token_ids[first:])

    def end_thoughts(self) -> None:
        """What follows is content, whatever came before."""
        self.channel = "content"

    def _is_mark(self, token_id: int) -> bool:
        tokens = self._tokens
        if token_id in (tokens.begin, tokens.end) or token_id in tokens.answer_tags:
            return True
        # A call within unfinished thoughts ends them, and belongs to the content.
        return token_id == tokens.tool_call and self.channel == "reasoning"

    def _piece(self, token_ids: Sequence[int]) -> Piece:
        self._count(len(token_ids))
        return Piece(self.channel, token_ids)

    def _count(self, num_tokens: int) -> None:
        if self.channel == "reasoning":
            self.num_reasoning_tokens += num_tokens

    def _turn(self, mark: int) -> Piece:
        """What a mark does; one that changes nothing, a second <think> for one, is dropped."""
        tokens, before = self._tokens, self.channel
        if mark == tokens.begin:
            self.channel = "reasoning"
        elif mark in tokens.answer_tags:
            return Piece(before, (), is_start=before != "reasoning")
        else:
            self.channel = "content"
        is_stray = before == "undecided" and mark == tokens.end
        return Piece(self.channel, (), is_start=self.channel != before, is_stray=is_stray)
