"""Random prompts, made as vLLM's client makes them: `random` and `prefix_repetition`."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from glimt.bench.data.lengths import Draw, Spread, draw_lengths
from glimt.bench.data.prompt import Prompt, Turn
from glimt.bench.data.tokens import Tokens
from glimt.bench.data.writing import Writer
from glimt.bench.options import DataOptions
from glimt.errors import BadSettings

_MAX_REPAIRS = 10
_WORDS_AS_VOCABULARY = 50_000


class RandomText:
    """Texts of consecutive vocabulary entries from a random place on.

    For one seed and tokenizer, lengths and places are those of vLLM's client. Decoding and encoding
    again may change a count; then tokens are cut off or added until it is right. Without a
    tokenizer, prompts are words, one for each token that was asked for.
    """

    def __init__(self, tokens: Tokens | None, random: np.random.Generator) -> None:
        self._tokens = tokens
        self._random = random
        self._writer = Writer(None)
        self.vocab_size = tokens.vocab_size if tokens else _WORDS_AS_VOCABULARY
        special = tokens.special_ids if tokens else frozenset()
        ids = [token_id for token_id in range(self.vocab_size) if token_id not in special]
        self._allowed: NDArray[np.int64] = np.array(ids, np.int64)

    def draw(self, num_prompts: int, input_len: int, output_len: int, spread: Spread) -> Draw:
        """Lengths of all prompts; tokens that the tokenizer adds by itself count as input."""
        added = self._tokens.num_added if self._tokens else 0
        return draw_lengths(
            self._random,
            num_prompts,
            input_len=max(0, input_len - added),
            output_len=output_len,
            spread=spread,
            vocab_size=self.vocab_size,
        )

    def prefix(self, length: int) -> list[int]:
        """Random tokens for the start of several prompts."""
        if length <= 0:
            return []
        drawn = self._random.integers(0, len(self._allowed), size=length)
        ids = [int(token_id) for token_id in self._allowed[drawn]]
        return self._exact(ids, length)[1] if self._tokens else ids

    def text(self, prefix: list[int], place: int, length: int) -> tuple[str, int | None]:
        """The text of `prefix` and `length` entries from `place` on, and its tokens."""
        if self._tokens is None:
            shared = " ".join(f"w{token_id}" for token_id in prefix)
            words = self._writer.write(max(length, 1), np.random.default_rng(place))
            return f"{shared} {words}" if shared else words, None
        run = self._allowed[(place + np.arange(length)) % len(self._allowed)]
        ids = prefix + [int(token_id) for token_id in run]
        text, exact = self._exact(ids, len(ids))
        return text, len(exact)

    def _exact(self, ids: list[int], length: int) -> tuple[str, list[int]]:
        """A text that has `length` tokens when it is encoded (hardly ever one more), and these."""
        if self._tokens is None:
            raise BadSettings("this dataset needs a tokenizer: give --tokenizer")
        for left in reversed(range(_MAX_REPAIRS + 1)):
            text = self._tokens.decode(ids)
            ids = self._tokens.encode(text)
            missing = length - len(ids)
            if missing == 0 or left == 0:
                break
            if missing > 0:
                ids += self._random.integers(0, self.vocab_size, size=missing).tolist()
            else:
                ids = ids[:length]
        return text, ids


def random_prompts(
    options: DataOptions, tokens: Tokens | None, num_prompts: int, seed: int
) -> Iterator[Prompt]:
    """`--dataset-name random`. Raises BadSettings."""
    if options.random_batch_size != 1:
        raise BadSettings(
            "--random-batch-size: batches are for embeddings, which are not done here"
        )
    made = RandomText(tokens, np.random.default_rng(seed))
    for text, count, output_len in random_texts(options, made, num_prompts):
        turn = Turn(parts=(text,), output_tokens=output_len, text_tokens=count)
        yield Prompt(turns=(turn,))


def random_texts(
    options: DataOptions, made: RandomText, num_prompts: int
) -> Iterator[tuple[str, int | None, int]]:
    """(text, its tokens, answer length) by the `--random-*` options. Raises BadSettings."""
    input_len, output_len = input_and_output(options)
    spread = Spread.parse(options.random_range_ratio)
    if input_len * (1 - spread.input) + options.random_prefix_len < 1:
        raise BadSettings("--random-input-len: every prompt must have at least one token")
    draw = made.draw(num_prompts, input_len, output_len, spread)
    prefix = made.prefix(options.random_prefix_len)
    for index in range(num_prompts):
        place = int(draw.offsets[index]) + index
        text, count = made.text(prefix, place, int(draw.inputs[index]))
        yield text, count, int(draw.outputs[index])


def input_and_output(options: DataOptions) -> tuple[int, int]:
    """Lengths of random prompts and answers: the general options win."""
    input_len = options.random_input_len if options.input_len is None else options.input_len
    output_len = options.random_output_len if options.output_len is None else options.output_len
    return input_len, output_len


def prefix_repetition_prompts(
    options: DataOptions, tokens: Tokens | None, num_prompts: int, seed: int
) -> Iterator[Prompt]:
    """`--dataset-name prefix_repetition`: P prefixes, N / P suffixes to each, in mixed order.

    Unlike vLLM's, exactly `num_prompts` are sent also where P does not divide them.
    """
    random = np.random.default_rng(seed)
    made = RandomText(tokens, random)
    num_prefixes = options.prefix_repetition_num_prefixes
    if num_prefixes < 1:
        raise BadSettings("--prefix-repetition-num-prefixes must be at least 1")
    output_len = options.output_len or options.prefix_repetition_output_len
    suffix_len = options.prefix_repetition_suffix_len
    prefixes = [made.prefix(options.prefix_repetition_prefix_len) for _ in range(num_prefixes)]
    order = random.permutation(np.arange(num_prompts) % num_prefixes)
    places = random.integers(0, made.vocab_size, size=num_prompts)
    for which, place in zip(order, places, strict=True):
        text, count = made.text(prefixes[which], int(place), suffix_len)
        turn = Turn(parts=(text,), output_tokens=output_len, text_tokens=count)
        yield Prompt(turns=(turn,))
