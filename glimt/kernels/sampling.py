"""Logits to tokens, in plain torch: the specification, and the path of every device for the most.

Letters: N rows, V vocabulary, L tokens of history, C candidates, W words, M tokens of a word.
Scores are float32. Functions ending in `_` change their first argument.

A draw is an argmax over score / temperature + Gumbel noise (Gumbel, 1954: it follows the softmax
of the scores). The noise is a pure function of (seed, sequence index, token id), so a token does
not depend on what else is in the batch, on chunking, or on a preemption in between.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -math.inf
LIKELIEST = 2.0**40  # the weight of the highest score

# Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014): SplitMix64.
GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_2 = 0x94D049BB133111EB - (1 << 64)


def gumbel_noise(seed_N: Tensor, index_N: Tensor, vocab_size: int, first_token: int = 0) -> Tensor:
    """Standard Gumbel noise float32 [N, V] as a pure function of (seed, index, token id), where
    ids start at `first_token`.

    `seed_N`, `index_N`: int64. Row n is the SplitMix64 stream whose state is a hash of the row's
    seed and index; token v takes the v-th number of it.
    """
    state_N = _mix(_mix(seed_N + GAMMA) ^ index_N)
    first = first_token + 1
    steps_V = torch.arange(first, first + vocab_size, device=seed_N.device) * GAMMA
    bits_NV = _mix(state_N[:, None] + steps_V)
    # 53 bits make a uniform in (0, 1) that is finest near 0, which is where the largest noise, and
    # so the argmax, comes from: -log1p(-u) keeps u's relative precision there.
    uniform_NV = (_shift_right(bits_NV, 11).float() + 0.5) * 2.0**-53
    uniform_NV = uniform_NV.clamp_(max=1 - 2.0**-24)
    return uniform_NV.neg_().log1p_().neg_().log_().neg_()


def add_noise_(
    scores_NV: Tensor, seed_N: Tensor, index_N: Tensor, is_random_N: Tensor, first_token: int = 0
) -> None:
    """Add `gumbel_noise` to the rows of `is_random_N` (bool); scores start at `first_token`."""
    noise_NV = gumbel_noise(seed_N, index_N, scores_NV.shape[1], first_token)
    scores_NV += noise_NV.mul_(is_random_N[:, None])


def apply_penalties_(
    scores_NV: Tensor,
    tokens_NL: Tensor,
    prompt_length_N: Tensor,
    length_N: Tensor,
    repetition_N: Tensor,
    frequency_N: Tensor,
    presence_N: Tensor,
) -> None:
    """Weaken tokens that were there before.

    Repetition (Keskar et al., 2019, "CTRL"), over prompt and generated tokens: positive scores are
    divided by it, others multiplied. Then, over generated tokens only:
    score -= frequency * count + presence * (count > 0). `tokens_NL` may hold anything from
    `length_N` on.
    """
    index_L = torch.arange(tokens_NL.shape[1], device=tokens_NL.device)
    known_NL = index_L < length_N[:, None]
    generated_NL = known_NL & (index_L >= prompt_length_N[:, None])
    ids_NL = tokens_NL.long().masked_fill(~known_NL, 0)
    seen_NV = torch.zeros_like(scores_NV).scatter_add_(1, ids_NL, known_NL.float())
    count_NV = torch.zeros_like(scores_NV).scatter_add_(1, ids_NL, generated_NL.float())
    factor_NV = torch.where(seen_NV > 0, repetition_N[:, None], 1.0)
    scores_NV.copy_(torch.where(scores_NV > 0, scores_NV / factor_NV, scores_NV * factor_NV))
    scores_NV -= frequency_N[:, None] * count_NV + presence_N[:, None] * (count_NV > 0)


def ban_words_(
    scores_NV: Tensor,
    tokens_RL: Tensor,
    row_W: Tensor,
    history_row_W: Tensor,
    words_WM: Tensor,
    word_length_W: Tensor,
    num_generated_W: Tensor,
    length_W: Tensor,
) -> None:
    """Forbid the token that would complete a word, i.e. a sequence of tokens.

    Word w concerns row `row_W[w]` of the scores, whose tokens so far are the first `length_W[w]`
    of `tokens_RL[history_row_W[w]]`, the last `num_generated_W[w]` of them generated; only words
    that lie wholly in these count. Words are right-aligned in `words_WM` (int64).
    """
    width = words_WM.shape[1]
    before_M = torch.arange(width, 0, -1, device=words_WM.device) - 1  # tokens after this one
    in_word_WM = before_M < word_length_W[:, None]
    # The word's last token is the candidate, so the one `before` it is at length - before.
    history_WM = (length_W[:, None] - before_M).clamp_(0, tokens_RL.shape[1] - 1)
    equal_WM = tokens_RL[history_row_W[:, None], history_WM] == words_WM
    matches_W = (equal_WM | ~in_word_WM)[:, :-1].all(1) & (word_length_W - 1 <= num_generated_W)
    penalty_W = torch.where(matches_W, NEVER, 0.0)
    scores_NV.index_put_((row_W, words_WM[:, -1]), penalty_W, accumulate=True)


def add_bias_(scores_NV: Tensor, place_B: Tensor, bias_B: Tensor) -> None:
    """Add `bias_B` (float32, -inf to forbid) at flat places n * V + token."""
    scores_NV.view(-1).index_add_(0, place_B, bias_B)


def allow_only_(scores_NV: Tensor, rows_A: Tensor, place_B: Tensor) -> None:
    """In the rows `rows_A` forbid all tokens except those at flat places n * V + token."""
    banned_NV = torch.zeros_like(scores_NV, dtype=torch.bool)
    banned_NV.index_fill_(0, rows_A, True)  # a scalar assigned by index would wait for the device
    banned_NV.view(-1).index_fill_(0, place_B, False)
    scores_NV.masked_fill_(banned_NV, NEVER)


def allow_bits_(scores_NV: Tensor, row_G: Tensor, bits_GW: Tensor) -> None:
    """In row `row_G[g]` forbid all tokens but those whose bit is set in `bits_GW[g]` (int32).

    Token v is bit v % 32 of word v // 32; words of little-endian machines. Each byte looks up what
    its eight tokens are given: on a CPU that takes a tenth of the time of shifting.
    """
    byte_256 = torch.arange(256, device=bits_GW.device)
    is_set = byte_256[:, None] >> torch.arange(8, device=bits_GW.device) & 1
    penalty = torch.zeros_like(is_set, dtype=scores_NV.dtype).masked_fill_(is_set == 0, NEVER)
    penalty_GV = F.embedding(bits_GW.view(torch.uint8).int(), penalty).flatten(1)
    scores_NV.index_add_(0, row_G, penalty_GV[:, : scores_NV.shape[1]])


def mask_min_p_(scores_NV: Tensor, min_p_N: Tensor) -> None:
    """Forbid tokens less likely than min_p times the most likely one (Nguyen et al., 2024)."""
    scores_NV.masked_fill_(scores_NV < least_likely(scores_NV, min_p_N)[:, None], NEVER)


def least_likely(scores_NV: Tensor, min_p_N: Tensor) -> Tensor:
    """[N]: the score of a token that is min_p times as likely as the most likely one."""
    return scores_NV.amax(1) + min_p_N.log()


def least_kept(scores_NV: Tensor, top_k_N: Tensor, top_p_N: Tensor, num_candidates: int) -> Tensor:
    """[N]: the lowest of the k highest scores, of which the fewest whose probability reaches p.

    `top_k_N` int64 in [1, V] (V = off), `top_p_N` in (0, 1] (1 = off). `num_candidates`: V, or a
    smaller number that no row's k exceeds, except in rows with both off; it saves the full sort.
    Both cut at a score, so tokens that tie with the last one kept are kept too, and probabilities
    are added as integers: the result depends on no order, among equals or of adding.
    """
    candidates_NC = torch.topk(scores_NV, num_candidates, dim=1).values
    is_off_N = (top_k_N >= scores_NV.shape[1]) & (top_p_N >= 1.0)
    rank_C = torch.arange(num_candidates, device=scores_NV.device)
    beyond_NC = rank_C >= top_k_N[:, None]
    weight_NC = weights_of(candidates_NC, candidates_NC[:, 0]).masked_fill_(beyond_NC, 0)
    sum_NC = weight_NC.cumsum(1)
    enough_N = enough_of(sum_NC[:, -1], top_p_N)
    reached_NC = sum_NC - weight_NC  # by the more likely ones
    beyond_NC |= (reached_NC >= enough_N[:, None]) & (top_p_N < 1.0)[:, None]
    beyond_NC[:, 0] = False
    least_N = candidates_NC.masked_fill(beyond_NC, math.inf).amin(1)
    return least_N.masked_fill(is_off_N, NEVER)


def weights_of(scores_NV: Tensor, highest_N: Tensor) -> Tensor:
    """int64 [N, V]: probabilities, not normalised, of which 2^22 add up without overflow."""
    return (scores_NV - highest_N[:, None]).exp_().mul_(LIKELIEST).long()


def enough_of(total_N: Tensor, top_p_N: Tensor) -> Tensor:
    """int64 [N]: what the weights of the fewest tokens whose probability reaches p add up to."""
    return (total_N * top_p_N.double()).ceil_().clamp_(min=1).long()


def token_logprobs(
    logits_NV: Tensor, token_N: Tensor, num_top: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logprob [N], rank [N], top logprobs [N, k], top ids [N, k]) under softmax(logits).

    Rank 1 is the most likely token; tokens that tie share the best rank of theirs.
    """
    total_N1 = logits_NV.logsumexp(1, keepdim=True)
    chosen_N1 = logits_NV.gather(1, token_N[:, None])
    rank_N = (logits_NV > chosen_N1).sum(1) + 1
    top = torch.topk(logits_NV, min(num_top, logits_NV.shape[1]), dim=1)
    return (chosen_N1 - total_N1).squeeze(1), rank_N, top.values - total_N1, top.indices


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of 64-bit integers that changes half of the bits."""
    bits = (bits ^ _shift_right(bits, 30)) * MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * MIX_2
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, amount: int) -> Tensor:
    """Logical shift: torch's shift of int64 is arithmetic."""
    return (bits >> amount) & ((1 << (64 - amount)) - 1)
