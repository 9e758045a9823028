"""Logits of the sampling rows to tokens and logprobs; a feature that no row uses costs nothing.

Order, as users know it from vLLM: raw logprobs, grammar, allowed tokens, bad words, min_tokens,
logit_bias, penalties, greedy rows; then for the others temperature, min_p, top_k, top_p, the draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimt.engine.plan import TokenMasks
from glimt.errors import InvalidRequest, NumericalError
from glimt.kernels import sampling
from glimt.kernels.draws import add_noise_, mask_top_k_top_p_
from glimt.runner.sampling_rows import SamplingRows, num_candidates
from glimt.runner.staging import Array, to_device
from glimt.wire import ErrorInfo, TokenLogprobs

# N rows that draw, V vocabulary, K rows of them with a feature, C most likely tokens.
IntArray = npt.NDArray[np.int64]

MAX_SCORES_PER_DRAW = 2**24
"""Bounds the memory of one draw with features: about ten arrays of so many numbers."""

_DRAWN, _NUMERICAL, _NOTHING_ALLOWED = 0, 1, 2
_ERRORS = {
    _NUMERICAL: ErrorInfo(
        NumericalError.code, "The model's output for this request is not a number."
    ),
    _NOTHING_ALLOWED: ErrorInfo(
        InvalidRequest.code,
        "allowed_token_ids, logit_bias, bad_words, min_tokens and a grammar, where there are any, "
        "leave no token to draw.",
    ),
}


# Tensors of features that change scores.
_MODIFIERS = {"penalised_K", "bias_place_B", "allowed_N_A", "words_WM", "grammar_G", "seed_N"}


@dataclass(frozen=True, slots=True)
class DrawInputs:
    """What one draw over rows [first, first + count) of the batch needs; see `gather`."""

    first: int
    count: int
    tensors: dict[str, Tensor]
    num_candidates: int  # 0 = neither top_k nor top_p
    max_length: int  # longest history of its rows
    logprob_rows: tuple[tuple[int, int], ...]  # (row within the draw, how many besides the drawn)
    may_have_masks: bool = False  # on rank 0: only it is given them


@dataclass(frozen=True, slots=True)
class DrawOutputs:
    """Tensors of one draw, on the device or, after the copy, on the host."""

    token_N: Tensor  # int64
    status_N: Tensor  # int64, one of the codes above
    logprobs: tuple[Tensor, ...]  # empty, or (logprob [K], rank [K], top [K, C], top ids [K, C])


def prepare_draws(
    rows: SamplingRows,
    row_N: IntArray,
    prompt_length_N: IntArray,
    length_N: IntArray,
    device: torch.device,
) -> list[DrawInputs]:
    """Inputs of the draws for rows `row_N`, each with `length_N` known tokens."""
    stride = max(1, MAX_SCORES_PER_DRAW // rows.vocab_size)
    draws = []
    for first in range(0, len(row_N), stride):
        part = slice(first, first + stride)
        arrays = rows.gather(row_N[part], prompt_length_N[part], length_N[part])
        draws.append(_draw_inputs(first, arrays, rows.vocab_size, device))
    return draws


def masked(
    inputs: DrawInputs, row_N: Sequence[int], masks: TokenMasks, device: torch.device
) -> DrawInputs:
    """The same draw, of which the rows `row_N`, within their masks if they have one."""
    inputs = replace(inputs, may_have_masks=True)
    place = {row: g for g, row in enumerate(masks.rows)}
    pairs = [(n, place[row]) for n, row in enumerate(row_N) if row in place]
    if not pairs:
        return inputs
    arrays: dict[str, Array] = {
        "grammar_G": np.array([n for n, _ in pairs], np.int64),
        "bits_GW": masks.bits[[g for _, g in pairs]],
    }
    return replace(inputs, tensors=inputs.tensors | to_device(arrays, device))


def draw(logits_NV: Tensor, tokens_RL: Tensor, inputs: DrawInputs) -> DrawOutputs:
    """Draw one token for each row of `inputs`, from logits of any float type.

    `tokens_RL`: the history of all device rows.
    """
    logits_NV = logits_NV[inputs.first : inputs.first + inputs.count]
    tensors = inputs.tensors
    highest_N, token_N = logits_NV.max(dim=1)  # NaN if there is one in the row
    best_N = highest_N
    if tensors.keys() & _MODIFIERS:
        scores_NV = logits_NV.to(torch.float32, copy=True)
        _modify_(scores_NV, tokens_RL[:, : inputs.max_length], tensors)
        if "seed_N" in tensors:
            _randomise_(scores_NV, tensors, inputs.num_candidates)
        best_N, token_N = scores_NV.max(dim=1)
    logprobs: tuple[Tensor, ...] = ()
    if inputs.logprob_rows:
        row_K = tensors["logprob_K"]
        num_top = max(count for _, count in inputs.logprob_rows)
        logprobs = sampling.token_logprobs(logits_NV[row_K].float(), token_N[row_K], num_top)
    return DrawOutputs(token_N, status_of(highest_N, best_N), logprobs)


def status_of(highest_N: Tensor, best_N: Tensor) -> Tensor:
    """Whether rows with these highest logits (NaN if there is one in the row) and best scores have
    drawn a token, or why not.
    """
    status_N = torch.where(highest_N.isfinite(), _DRAWN, _NUMERICAL)
    is_empty_N = (status_N == _DRAWN) & (best_N == sampling.NEVER)
    return status_N.masked_fill(is_empty_N, _NOTHING_ALLOWED)


def read_draw(
    inputs: DrawInputs, outputs: DrawOutputs, row_N: Sequence[int]
) -> tuple[dict[int, int], dict[int, TokenLogprobs], dict[int, ErrorInfo]]:
    """(token, logprobs, error) by device row, from outputs on the host. `row_N`: of this draw."""
    status_N, token_N = outputs.status_N.tolist(), outputs.token_N.tolist()
    tokens: dict[int, int] = {}
    failed: dict[int, ErrorInfo] = {}
    for row, status, token in zip(row_N, status_N, token_N, strict=True):
        if status == _DRAWN:
            tokens[row] = token
        else:
            failed[row] = _ERRORS[status]
    logprobs: dict[int, TokenLogprobs] = {}
    if inputs.logprob_rows:
        logprob_K, rank_K, top_KC, top_id_KC = (tensor.tolist() for tensor in outputs.logprobs)
        for k, (n, count) in enumerate(inputs.logprob_rows):
            if row_N[n] not in tokens:
                continue
            top = zip(top_id_KC[k][:count], top_KC[k][:count], strict=True)
            logprobs[row_N[n]] = TokenLogprobs(token_N[n], logprob_K[k], rank_K[k], tuple(top))
    return tokens, logprobs, failed


def _draw_inputs(
    first: int, arrays: dict[str, Array], vocab_size: int, device: torch.device
) -> DrawInputs:
    candidates = 0
    if "top_k_N" in arrays:
        candidates = num_candidates(arrays["top_k_N"], arrays["top_p_N"], vocab_size)
    counts_K = arrays.pop("num_logprobs_K", np.zeros(0, np.int64))
    rows_K = arrays.get("logprob_K", np.zeros(0, np.int64))
    max_length = int(arrays["length_N"].max())
    return DrawInputs(
        first=first,
        count=len(arrays["row_N"]),
        tensors=to_device(arrays, device),
        num_candidates=candidates,
        max_length=max_length,
        logprob_rows=tuple(zip(rows_K.tolist(), counts_K.tolist(), strict=True)),
    )


def _modify_(scores_NV: Tensor, tokens_RL: Tensor, tensors: dict[str, Tensor]) -> None:
    """Everything that also changes a greedy row's choice."""
    if "grammar_G" in tensors:
        sampling.allow_bits_(scores_NV, tensors["grammar_G"], tensors["bits_GW"])
    if "allowed_N_A" in tensors:
        sampling.allow_only_(scores_NV, tensors["allowed_N_A"], tensors["allowed_place_B"])
    if "words_WM" in tensors:
        row_W = tensors["word_row_W"]
        sampling.ban_words_(
            scores_NV,
            tokens_RL,
            row_W,
            tensors["row_N"][row_W],
            tensors["words_WM"],
            tensors["word_length_W"],
            tensors["word_generated_W"],
            tensors["length_N"][row_W],
        )
    if "bias_place_B" in tensors:
        sampling.add_bias_(scores_NV, tensors["bias_place_B"], tensors["bias_B"])
    if "penalised_K" in tensors:
        row_K = tensors["penalised_K"]
        scores_KV = scores_NV[row_K]
        sampling.apply_penalties_(
            scores_KV,
            tokens_RL[tensors["row_N"][row_K]],
            tensors["penalty_prompt_length_K"],
            tensors["length_N"][row_K],
            tensors["repetition_K"],
            tensors["frequency_K"],
            tensors["presence_K"],
        )
        scores_NV[row_K] = scores_KV


def _randomise_(scores_NV: Tensor, tensors: dict[str, Tensor], num_candidates: int) -> None:
    """Scores whose argmax is the draw; greedy rows (temperature 1, all off) keep theirs."""
    scores_NV /= tensors["temperature_N"][:, None]
    if "min_p_N" in tensors:
        sampling.mask_min_p_(scores_NV, tensors["min_p_N"])
    if num_candidates:
        mask_top_k_top_p_(scores_NV, tensors["top_k_N"], tensors["top_p_N"], num_candidates)
    add_noise_(scores_NV, tensors["seed_N"], tensors["length_N"], tensors["is_random_N"])
