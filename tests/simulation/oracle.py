"""What a request must be answered, computed alone, at once and by other means than the server's.

The tokens are those of the simulated model on the prompt; the text is all of them decoded
together and searched for stop strings from the front.
"""

from __future__ import annotations

import codecs
import functools
import random
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from glimt.engine.simulated_model import SimulatedModel, expected_tokens
from glimt.frontend.prompt import Conversation, MediaSource, PreparedMedia, Prompt
from glimt.frontend.reasoning import ReasoningTokens
from glimt.frontend.reply import ReplyDelta, ReplyReader, fold
from glimt.frontend.thoughts import with_thoughts
from glimt.grammar.source import regex_grammar
from glimt.wire import Grammar, SamplingParams, Submit
from tests.simulation.event_loop import SimulatedLoop
from tests.simulation.media import CountedLease, prepared
from tests.support.grammars import tiny_compiler
from tests.support.prompts import renderer, tokenizer

EOS = tokenizer().control_tokens["<|endoftext|>"]
USER = tokenizer().control_tokens["<|user|>"]
VOCAB_SIZE = 640  # of the logits: more than the tokenizer's
COMPILER = tiny_compiler(size=VOCAB_SIZE)
EXPRESSIONS = ("[a-z]{1,9}", "[a-z ]+[.!]", "(yes|no|perhaps)", "[0-9a-f]{3}-[0-9]*")
ROOM = 4096  # more than any prompt of the stories

_WORD = "Tell me a story about the sea. "
# (text, addresses of images and videos before it)
CONVERSATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("hi", ()),
    ("hello", ()),
    ("a", ()),
    (_WORD, ()),
    (_WORD + "And of <|user|> and <|image|>, which mean nothing here.", ()),
    ("what is it", ("data:1",)),
    ("what is it", ("data:4",)),
    ("compare", ("data:4", "data:6")),
    ("compare", ("data:1", "data:1", "data:4")),
    ("and now", ("data:v",)),
    (_WORD * 40, ()),
    ("too large for one step", ("data:16",)),
)
LONG = 10
LARGE = 11


@dataclass(frozen=True)
class Sampled:
    """The part of a request that decides its tokens and text."""

    conversation: int
    salt: bytes
    max_tokens: int
    min_tokens: int
    eos_token_ids: tuple[int, ...]
    stop_token_ids: tuple[int, ...]
    stop: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    parse_reasoning: bool
    expression: str | None  # that the answer must match


@dataclass(frozen=True)
class Expected:
    """The whole answer of one choice."""

    token_ids: list[int]
    content: str
    reasoning: str
    finish_reason: str
    stop_reason: int | str | None
    is_mended: bool  # content turned out to be thought, which a stream cannot take back


def messages(conversation: int) -> list[dict[str, Any]]:
    """As the client writes them."""
    text, urls = CONVERSATIONS[conversation]
    if not urls:
        return [{"role": "user", "content": text}]
    parts = [
        {"type": kind, kind: {"url": url}}
        for url in urls
        for kind in ["video_url" if url == "data:v" else "image_url"]
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@functools.cache
def prompt_of(conversation: int, salt: bytes) -> Prompt:
    """A conversation's prompt, rendered with nothing else going on."""
    text, urls = CONVERSATIONS[conversation]
    kinds = ["video" if url == "data:v" else "image" for url in urls]
    content: Any = [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]
    plain = Conversation(
        messages=({"role": "user", "content": content if urls else text},),
        media=tuple(MediaSource(kind, url, "") for kind, url in zip(kinds, urls, strict=True)),
    )
    loop = SimulatedLoop(random.Random(0), 0.0)
    try:
        render = renderer(max_model_len=ROOM).render(plain, _AtOnce(), cache_salt=salt)
        return loop.run_until_complete(render)
    finally:
        loop.close()


class _AtOnce:
    """Media that are there already."""

    async def prepare(self, source: MediaSource) -> PreparedMedia:
        return prepared(source, CountedLease(0))


def expect(sampled: Sampled, seed: int, model: SimulatedModel, max_model_len: int) -> Expected:
    """The answer of the choice that draws with `seed`."""
    prompt = prompt_of(sampled.conversation, sampled.salt)
    sampling = SamplingParams(
        max_tokens=sampled.max_tokens,
        min_tokens=sampled.min_tokens,
        seed=seed,
        eos_token_ids=sampled.eos_token_ids,
        stop_token_ids=sampled.stop_token_ids,
    )
    compiled = None
    if sampled.expression is not None:
        text = regex_grammar(sampled.expression)
        compiled = COMPILER.start(text).result()
        sampling = replace(sampling, grammar=Grammar(text=text))
        reasoning = ReasoningTokens.of(tokenizer()) if sampled.parse_reasoning else None
        if reasoning is not None:
            sampling = with_thoughts(sampling, reasoning, tokenizer(), prompt.token_ids)
    submit = Submit(
        request_id=0,
        server=0,
        token_ids=prompt.token_ids.tobytes(),
        positions=None if prompt.positions is None else prompt.positions.tobytes(),
        rope_delta=prompt.rope_delta,
        images=prompt.images,
        sampling=sampling,
    )
    token_ids, finish_reason = expected_tokens(model, submit, max_model_len, compiled)
    stop_reason: int | str | None = None
    # An answer under an expression may also be complete.
    ends = {*sampled.eos_token_ids, *sampled.stop_token_ids}
    has_end = finish_reason == "stop" and token_ids[-1] in ends
    if has_end and token_ids[-1] != EOS:
        stop_reason = token_ids[-1]
    hides_last = has_end and not sampled.include_stop
    visible = token_ids[:-1] if hides_last else token_ids
    if sampled.parse_reasoning:
        reply = _reply(sampled, prompt, visible)
        mark = tokenizer().control_tokens["</think>"]
        marks = [each for each in visible if each in (mark, tokenizer().control_tokens["<think>"])]
        is_mended = marks[:1] == [mark]
        return Expected(
            token_ids, reply.content, reply.reasoning, finish_reason, stop_reason, is_mended
        )
    text, stopped, num_read = _text(sampled, visible)
    if stopped is None:
        return Expected(token_ids, text, "", finish_reason, stop_reason, False)
    return Expected(token_ids[:num_read], text, "", "stop", stopped, False)


def _text(sampled: Sampled, token_ids: list[int]) -> tuple[str, str | None, int]:
    """The text up to a stop string, which one, and the tokens until then."""
    skip = tokenizer().skip_ids if sampled.skip_special_tokens else frozenset()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    for num_read, token_id in enumerate(token_ids, 1):
        start = len(text)
        text += decoder.decode(b"" if token_id in skip else tokenizer().token_bytes(token_id))
        for end in range(start + 1, len(text) + 1):
            hits = [stop for stop in sampled.stop if text[:end].endswith(stop)]
            if hits and num_read > sampled.min_tokens:
                longest = max(hits, key=len)
                cut = end if sampled.include_stop else end - len(longest)
                return text[:cut], longest, num_read
    return text + decoder.decode(b"", True), None, len(token_ids)


def _reply(sampled: Sampled, prompt: Prompt, token_ids: list[int]) -> ReplyDelta:
    """Thoughts and content: read in one piece, where the server reads them as they come."""
    reader = ReplyReader(
        tokenizer(),
        ReasoningTokens.of(tokenizer()),
        prompt.token_ids,
        skip_ids=tokenizer().skip_ids if sampled.skip_special_tokens else frozenset(),
        min_tokens=sampled.min_tokens,
    )
    return fold([reader.push(token_ids), reader.finish()])
