"""The sampling parameters of all rows, and of them what one draw needs, as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glimt.runner.staging import Array
from glimt.wire import SamplingParams

IntArray = npt.NDArray[np.int64]

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: dividing by them would leave the float range."""

_NUMBERS = np.dtype(
    [
        ("seed", np.int64),
        ("temperature", np.float32),
        ("top_k", np.int64),  # the vocabulary's size = off
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("repetition", np.float32),
        ("frequency", np.float32),
        ("presence", np.float32),
        ("min_length", np.int64),  # prompt + min_tokens
        ("num_logprobs", np.int64),  # -1 = off
        ("is_random", np.bool_),
        ("has_penalty", np.bool_),
        ("has_bias", np.bool_),
        ("has_allowed", np.bool_),
        ("has_words", np.bool_),
    ]
)


@dataclass(frozen=True, slots=True)
class _Lists:
    """The parameters of one row that are lists of tokens; all int64 but `bias`."""

    stop_ids: IntArray
    bias_ids: IntArray
    bias: npt.NDArray[np.float32]
    allowed_ids: IntArray
    words: tuple[IntArray, ...]


class SamplingRows:
    """Sampling parameters by row, on the host; `gather` picks what a set of rows really uses."""

    def __init__(self, max_rows: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._numbers = np.zeros(max_rows, _NUMBERS)
        self._lists: dict[int, _Lists] = {}

    def take(self, row: int, num_prompt_tokens: int, params: SamplingParams) -> None:
        """Set a row. Raises ValueError if a token id is outside the vocabulary."""
        lists = _Lists(
            stop_ids=_ids(sorted({*params.eos_token_ids, *params.stop_token_ids})),
            bias_ids=_ids(params.logit_bias),
            bias=np.fromiter(params.logit_bias.values(), np.float32),
            allowed_ids=_ids(params.allowed_token_ids or ()),
            words=tuple(_ids(word) for word in params.bad_words if word),
        )
        for ids in (lists.stop_ids, lists.bias_ids, lists.allowed_ids, *lists.words):
            if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_size):
                raise ValueError("a token id of the sampling parameters is not in the vocabulary")
        self._lists[row] = lists
        # top_k 1 leaves one token whatever the rest says: greedy, and as cheap
        is_random = params.temperature >= GREEDY_BELOW and params.top_k != 1
        penalties = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
        top_k = params.top_k if 0 < params.top_k < self.vocab_size else self.vocab_size
        numbers = self._numbers[row]
        numbers["seed"] = params.seed
        numbers["temperature"] = params.temperature if is_random else 1.0
        numbers["top_k"] = top_k if is_random else self.vocab_size
        numbers["top_p"] = params.top_p if is_random else 1.0
        numbers["min_p"] = params.min_p if is_random else 0.0
        numbers["repetition"], numbers["frequency"], numbers["presence"] = penalties
        numbers["min_length"] = num_prompt_tokens + params.min_tokens if lists.stop_ids.size else 0
        numbers["num_logprobs"] = -1 if params.logprobs is None else params.logprobs
        numbers["is_random"] = is_random
        numbers["has_penalty"] = penalties != (1.0, 0.0, 0.0)
        numbers["has_bias"] = bool(params.logit_bias)
        numbers["has_allowed"] = params.allowed_token_ids is not None
        numbers["has_words"] = bool(lists.words)

    def gather(
        self, row_N: IntArray, prompt_length_N: IntArray, length_N: IntArray
    ) -> dict[str, Array]:
        """Arrays of one draw; a feature that no row uses is absent. `length_N`: known tokens.

        Always `row_N` and `length_N`. With random rows `is_random_N`, `seed_N`, `temperature_N`;
        if used `min_p_N`; `top_k_N` and `top_p_N`.
        Penalties: `penalised_K` (index into N) and `repetition_K`, `frequency_K`, `presence_K`,
        `penalty_prompt_length_K`. Flat places n * V + token: `bias_place_B`, `bias_B`;
        `allowed_N_A` (rows) and `allowed_place_B`. Words as in `kernels.sampling.ban_words_`:
        `word_row_W`, `words_WM`, `word_length_W`, `word_generated_W`.
        Logprobs: `logprob_K` (index into N), `num_logprobs_K`.
        """
        numbers_N = self._numbers[row_N]
        arrays: dict[str, Array] = {"row_N": row_N, "length_N": length_N}
        if numbers_N["is_random"].any():
            arrays |= _random_arrays(numbers_N, self.vocab_size)
        penalised_K = np.flatnonzero(numbers_N["has_penalty"])
        if penalised_K.size:
            arrays["penalised_K"] = penalised_K
            arrays["penalty_prompt_length_K"] = prompt_length_N[penalised_K]
            for name in ("repetition", "frequency", "presence"):
                arrays[f"{name}_K"] = numbers_N[name][penalised_K]
        arrays |= self._biases(row_N, numbers_N, length_N)
        arrays |= self._allowed(row_N, numbers_N)
        arrays |= self._words(row_N, numbers_N, length_N - prompt_length_N)
        logprob_K = np.flatnonzero(numbers_N["num_logprobs"] >= 0)
        if logprob_K.size:
            arrays["logprob_K"] = logprob_K
            arrays["num_logprobs_K"] = numbers_N["num_logprobs"][logprob_K]
        return arrays

    def _biases(self, row_N: IntArray, numbers_N: Array, length_N: IntArray) -> dict[str, Array]:
        """logit_bias, and -inf on the stop tokens of rows that must not end yet."""
        places: list[IntArray] = []
        biases: list[npt.NDArray[np.float32]] = []
        for n in np.flatnonzero(numbers_N["has_bias"]):
            lists = self._lists[int(row_N[n])]
            places.append(lists.bias_ids + n * self.vocab_size)
            biases.append(lists.bias)
        for n in np.flatnonzero(length_N < numbers_N["min_length"]):
            stop_ids = self._lists[int(row_N[n])].stop_ids
            places.append(stop_ids + n * self.vocab_size)
            biases.append(np.full(stop_ids.size, -np.inf, np.float32))
        if not places:
            return {}
        return {"bias_place_B": np.concatenate(places), "bias_B": np.concatenate(biases)}

    def _allowed(self, row_N: IntArray, numbers_N: Array) -> dict[str, Array]:
        rows_A = np.flatnonzero(numbers_N["has_allowed"])
        if not rows_A.size:
            return {}
        ids = [self._lists[int(row_N[n])].allowed_ids + n * self.vocab_size for n in rows_A]
        return {"allowed_N_A": rows_A, "allowed_place_B": np.concatenate(ids)}

    def _words(
        self, row_N: IntArray, numbers_N: Array, num_generated_N: IntArray
    ) -> dict[str, Array]:
        owners = np.flatnonzero(numbers_N["has_words"])
        if not owners.size:
            return {}
        pairs = [(n, word) for n in owners for word in self._lists[int(row_N[n])].words]
        row_W = np.array([n for n, _ in pairs], np.int64)
        words_WM = np.zeros((len(pairs), max(word.size for _, word in pairs)), np.int64)
        for place_M, (_, word) in zip(words_WM, pairs, strict=True):
            place_M[-word.size :] = word
        return {
            "word_row_W": row_W,
            "words_WM": words_WM,
            "word_length_W": np.array([word.size for _, word in pairs], np.int64),
            "word_generated_W": num_generated_N[row_W],
        }


def _random_arrays(numbers_N: Array, vocab_size: int) -> dict[str, Array]:
    arrays: dict[str, Array] = {
        f"{name}_N": numbers_N[name].copy() for name in ("is_random", "seed", "temperature")
    }
    if (numbers_N["min_p"] > 0).any():
        arrays["min_p_N"] = numbers_N["min_p"].copy()
    has_k_N = numbers_N["top_k"] < vocab_size
    has_p_N = numbers_N["top_p"] < 1
    if has_k_N.any() or has_p_N.any():
        arrays["top_k_N"] = numbers_N["top_k"].copy()
        arrays["top_p_N"] = numbers_N["top_p"].copy()
    return arrays


def num_candidates(top_k_N: IntArray, top_p_N: Array, vocab_size: int) -> int:
    """How many of a row's highest scores top_k and top_p must see, over all rows."""
    if ((top_k_N >= vocab_size) & (top_p_N < 1)).any():
        return vocab_size
    return int(top_k_N[top_k_N < vocab_size].max())


def _ids(ids: Sequence[int] | dict[int, float]) -> IntArray:
    return np.fromiter(ids, np.int64, len(ids))
