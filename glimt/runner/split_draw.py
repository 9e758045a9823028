"""Draws where each rank has the logits of its share of the vocabulary: candidates travel, not all.

A draw is the argmax of scores with noise, and the noise of a token is a function of its id. So each
rank finds the best of its share, and the best of these is the draw: the very token that one rank
with all logits draws. top_k and min_p cut at a score that follows from the highest of each share,
for the k highest of all are among the k highest of each; ties at the cut are kept as ever. top_p
without top_k, or a large top_k, cuts where all scores say: the ranks look for that score together,
by sums over what each has above a few pivots. Penalties, biases, grammars and logprobs want all
logits in one place; such draws gather them.

Letters: N rows, U this rank's share of the vocabulary V, W ranks, C candidates of a share.
"""

from dataclasses import replace

import torch
from torch import Tensor

from glimt.kernels import sampling
from glimt.kernels.draws import (
    add_noise_,
    cuts_together,
    least_kept,
    least_kept_of_shares,
    splits,
)
from glimt.parallel.mesh import Mesh
from glimt.runner.sampler import DrawInputs, DrawOutputs, draw, status_of

MAX_CANDIDATES = 1024
_FEATURES = {
    "row_N",
    "length_N",
    "is_random_N",
    "seed_N",
    "temperature_N",
    "min_p_N",
    "top_k_N",
    "top_p_N",
}


def draw_over_ranks(
    logits_NU: Tensor, tokens_RL: Tensor, inputs: DrawInputs, mesh: Mesh
) -> DrawOutputs:
    """`sampler.draw` of all shares' logits, the same on every rank; a collective operation."""
    if mesh.tp_size == 1:
        return draw(logits_NU, tokens_RL, inputs)
    logits_NU = logits_NU[inputs.first : inputs.first + inputs.count]
    if can_split(inputs, logits_NU.device):
        return _draw_split(logits_NU, inputs, mesh)
    outputs = draw(mesh.tp_concat(logits_NU), tokens_RL, replace(inputs, first=0))
    # Rank 0 has the last word: rounding may differ between devices, histories may not.
    return replace(outputs, token_N=mesh.tp_broadcast(outputs.token_N))


def can_split(inputs: DrawInputs, device: torch.device) -> bool:
    """Whether no rank takes all logits for this draw on such devices: the same on all ranks, masked
    rows or not.
    """
    if inputs.may_have_masks or inputs.logprob_rows:
        return False
    if not inputs.tensors.keys() <= _FEATURES:
        return False
    decides = splits if inputs.num_candidates <= MAX_CANDIDATES else cuts_together
    return decides(device, inputs.count)


def _draw_split(logits_NU: Tensor, inputs: DrawInputs, mesh: Mesh) -> DrawOutputs:
    scores_NU = logits_NU
    if "seed_N" in inputs.tensors:
        scores_NU = logits_NU.to(torch.float32, copy=True)
        _randomise_(scores_NU, inputs, mesh)
    best_N, place_N = scores_NU.max(dim=1)
    token_N = place_N + mesh.tp_rank * logits_NU.shape[1]
    highest_N = logits_NU.amax(1)  # NaN if there is one in the row
    mine_3N = torch.stack(
        [highest_N.float().view(torch.int32), best_N.float().view(torch.int32), token_N.int()]
    )
    all_W3N = mesh.tp_stack(mine_3N)
    best_WN = all_W3N[:, 1].view(torch.float32)
    winner_1N = best_WN.argmax(0, keepdim=True)  # the first of the highest: the lowest token
    token_N = all_W3N[:, 2].gather(0, winner_1N)[0].long()
    highest_N = all_W3N[:, 0].view(torch.float32).amax(0)
    return DrawOutputs(token_N, status_of(highest_N, best_WN.amax(0)), ())


def _randomise_(scores_NU: Tensor, inputs: DrawInputs, mesh: Mesh) -> None:
    """As in the sampler, by cuts that hold for the whole vocabulary."""
    tensors = inputs.tensors
    scores_NU /= tensors["temperature_N"][:, None]
    if "min_p_N" in tensors or inputs.num_candidates:
        has_few = inputs.num_candidates <= MAX_CANDIDATES
        num_candidates = inputs.num_candidates if has_few else 1
        num_candidates = min(max(1, num_candidates), scores_NU.shape[1])
        highest_NC = torch.topk(scores_NU, num_candidates, dim=1, sorted=False).values
        # All that a cut can depend on: the same on every rank.
        highest_NC = mesh.tp_concat(highest_NC)
        if "min_p_N" in tensors:
            least_N = sampling.least_likely(highest_NC, tensors["min_p_N"])
            highest_NC.masked_fill_(highest_NC < least_N[:, None], sampling.NEVER)
            scores_NU.masked_fill_(scores_NU < least_N[:, None], sampling.NEVER)
        if not has_few:
            given = tensors["top_k_N"], tensors["top_p_N"], mesh.tp_size * scores_NU.shape[1]
            least_N = least_kept_of_shares(scores_NU, highest_NC.amax(1), *given, mesh.tp_sum)
            scores_NU.masked_fill_(scores_NU < least_N[:, None], sampling.NEVER)
        elif inputs.num_candidates:
            num_kept = min(inputs.num_candidates, highest_NC.shape[1])
            least_N = least_kept(highest_NC, tensors["top_k_N"], tensors["top_p_N"], num_kept)
            scores_NU.masked_fill_(scores_NU < least_N[:, None], sampling.NEVER)
    add_noise_(
        scores_NU,
        tensors["seed_N"],
        tensors["length_N"],
        tensors["is_random_N"],
        first_token=mesh.tp_rank * scores_NU.shape[1],
    )
