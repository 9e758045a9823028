"""A model of which every token is a hash of its whole history, and the oracle of its answers.

It stands in for the real one wherever scheduling is what matters. The KV of a token is a hash of
everything before it, and a drawn token is a hash of all KV read back, so a page given to two
owners, a token lost or computed twice, a wrong position, a wrong image or a wrong resume gives
another token, at once and for good. It costs no arithmetic worth mentioning and no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glimt.engine.constraint import Constraint
from glimt.engine.plan import IntArray
from glimt.engine.thoughts import ThoughtLimit
from glimt.grammar.matcher import Matcher
from glimt.grammar.vocabulary import bits_of
from glimt.wire import ImageSpan, SamplingParams, Submit

_MASK = 2**64 - 1
Words = npt.NDArray[np.uint64]


def mix(value: int) -> int:
    """A permutation of 64-bit words without visible structure (finaliser of SplitMix64)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def mix_words(values: Words) -> Words:
    """`mix` of each word."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _salted(index: int) -> int:
    return mix(index * 0x9E3779B97F4A7C15 + 1 & _MASK)


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """`eos_probability`: share of draws that give the first eos id where a request has one.

    `favourites`: tokens that rows with a mask draw more often than others.
    """

    vocab_size: int = 1000
    eos_probability: float = 0.0
    favourites: tuple[int, ...] = ()

    def embed(self, token_id: int, position: Sequence[int], image: tuple[bytes, int] | None) -> int:
        """What enters at one token: id, position on three axes, (content hash, offset)."""
        value = mix(token_id + 1)
        for axis in position:
            value = mix(value ^ (axis + 0x1234567))
        if image is not None:
            content_hash, offset = image
            value = mix(value ^ int.from_bytes(content_hash[:8], "little") ^ (offset + 1) << 20)
        return value

    def kv(self, embedded: int, history: int) -> int:
        """KV of a token, given the fold of all KV before it."""
        return mix(embedded ^ history)

    def fold(self, history: int, kv: int, index: int) -> int:
        """The fold of a history that is one token longer."""
        return history + mix(kv ^ _salted(index)) & _MASK

    def fold_all(self, kv: Words) -> int:
        """The fold of the KV [L] of a whole history."""
        indices = np.arange(len(kv), dtype=np.uint64)
        salts = mix_words(indices * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1))
        return int(mix_words(kv ^ salts).sum(dtype=np.uint64))

    def draw(
        self,
        history: int,
        sampling: SamplingParams,
        num_outputs: int,
        mask: IntArray | None = None,
    ) -> int | None:
        """The next token; no eos or stop token among the first `min_tokens`.

        With a `mask` (int32 [W], see `plan.TokenMasks`) one of those in it, or None if that leaves
        none.
        """
        value = mix(history ^ mix(sampling.seed & _MASK))
        may_stop = num_outputs >= sampling.min_tokens
        if mask is not None:
            return self._draw_masked(value, sampling, mask, may_stop=may_stop)
        if sampling.eos_token_ids and may_stop and value / 2**64 < self.eos_probability:
            return sampling.eos_token_ids[0]
        token_id = mix(value) % self.vocab_size
        barred = sampling.eos_token_ids + (() if may_stop else sampling.stop_token_ids)
        for _ in barred:
            token_id = (token_id + (token_id in barred)) % self.vocab_size
        return token_id

    def _draw_masked(
        self, value: int, sampling: SamplingParams, mask: IntArray, *, may_stop: bool
    ) -> int | None:
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: self.vocab_size]
        allowed = set(np.flatnonzero(bits).tolist())
        if not may_stop:
            allowed -= {*sampling.eos_token_ids, *sampling.stop_token_ids}
        ends = {*sampling.eos_token_ids} & allowed
        if ends and value / 2**64 < self.eos_probability:
            return min(ends)
        favourites = sorted(allowed & set(self.favourites))
        choice = favourites if favourites and value % 4 == 0 else sorted(allowed)
        return choice[mix(value) % len(choice)] if choice else None


def image_at(images: Sequence[ImageSpan], index: int) -> tuple[bytes, int] | None:
    """(content hash, offset in its span) of the image token at a sequence index."""
    for span in images:
        if span.start <= index < span.start + span.num_tokens:
            return span.content_hash, index - span.start
    return None


def position_at(
    positions: IntArray | None, num_prompt_tokens: int, rope_delta: int, index: int
) -> Sequence[int]:
    """Position on three axes of a sequence index, within the prompt or beyond."""
    if index >= num_prompt_tokens:
        return [index + rope_delta] * 3
    return [index] * 3 if positions is None else [int(axis) for axis in positions[:, index]]


def expected_tokens(
    model: SimulatedModel, submit: Submit, max_model_len: int, compiled: Matcher | None = None
) -> tuple[list[int], str]:
    """What a request must be answered, computed alone and at once: token ids, finish_reason.

    `compiled`: its grammar, if it has one. The reason is "error" where no token can be drawn.
    """
    sampling = submit.sampling
    constraint = None
    if sampling.grammar is not None and compiled is not None:
        constraint = Constraint(sampling.grammar, compiled, sampling.eos_token_ids)
    limit = None if sampling.thinking is None else ThoughtLimit(sampling.thinking)
    token_ids = np.frombuffer(submit.token_ids, dtype=np.int32).tolist()
    positions = None
    if submit.positions is not None:
        positions = np.frombuffer(submit.positions, dtype=np.int32).reshape(3, -1)
    num_prompt = len(token_ids)
    history = 0
    for index in range(max_model_len):
        position = position_at(positions, num_prompt, submit.rope_delta, index)
        embedded = model.embed(token_ids[index], position, image_at(submit.images, index))
        history = model.fold(history, model.kv(embedded, history), index)
        if index < num_prompt - 1:
            continue
        num_outputs = len(token_ids) - num_prompt
        bits_W = None if constraint is None else np.empty(constraint.num_words, np.uint32)
        if limit is not None and limit.forced is not None:
            bits_W = bits_of((limit.forced,), model.vocab_size)
        elif constraint is not None and bits_W is not None and not constraint.fill(bits_W):
            return token_ids[num_prompt:], "stop"
        mask = None if bits_W is None else bits_W.view(np.int32)
        token_id = model.draw(history, sampling, num_outputs, mask)
        if token_id is None:
            return token_ids[num_prompt:], "error"
        token_ids.append(token_id)
        if limit is not None:
            limit.advance(token_id)
        stops = token_id in sampling.eos_token_ids or token_id in sampling.stop_token_ids
        if stops and num_outputs >= sampling.min_tokens:
            return token_ids[num_prompt:], "stop"
        if constraint is not None and constraint.advance(token_id):
            return token_ids[num_prompt:], "stop"
        if num_outputs + 1 >= sampling.max_tokens or len(token_ids) >= max_model_len:
            break
    return token_ids[num_prompt:], "length"
