"""Log-probabilities of prompt tokens: how likely the model found each, given those before it.

The hidden state of token p gives the logits of token p + 1. The rows of logits needed are as many
as the step has prompt tokens, so they are made and reduced a slice at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimt.engine.plan import RowWork
from glimt.kernels import sampling
from glimt.runner.rows import RowTable
from glimt.runner.staging import to_device
from glimt.wire import TokenLogprobs

# P tokens whose successors are judged, V vocabulary, C most likely tokens.
IntArray = npt.NDArray[np.int64]

MAX_SCORES = 2**24
"""Logits that exist at once."""


@dataclass(frozen=True, slots=True)
class PromptJudgement:
    """What of a pass judges prompt tokens. `parts`: (row, number of tokens, alternatives)."""

    hidden_index_P: Tensor  # places in the pass
    target_place_P: Tensor  # flat places of their successors in the rows' token table
    parts: tuple[tuple[int, int, int], ...]
    num_top: int  # the most that a part wants


def prepare_judgement(
    rows: RowTable, work: Sequence[RowWork], query_starts_R1: IntArray
) -> PromptJudgement | None:
    """None if no row of `work` wants any; the usual case, and it costs a look at an array."""
    row_R = np.array([item.row for item in work], np.int64)
    wanted = np.flatnonzero(rows.num_prompt_logprobs_R[row_R] >= 0).tolist()
    parts: list[tuple[int, int, int]] = []
    hidden: list[IntArray] = []
    targets: list[IntArray] = []
    for r in wanted:
        item = work[r]
        # The last prompt token's successor is drawn, not given.
        end = min(item.start + item.num_tokens, int(rows.num_prompt_tokens_R[item.row]) - 1)
        index = np.arange(item.start, end, dtype=np.int64)
        if index.size:
            parts.append((item.row, index.size, int(rows.num_prompt_logprobs_R[item.row])))
            hidden.append(index - item.start + query_starts_R1[r])
            targets.append(index + 1 + item.row * rows.tokens_RL.shape[1])
    if not parts:
        return None
    arrays = {"hidden": np.concatenate(hidden), "targets": np.concatenate(targets)}
    sent = to_device(arrays, rows.device)
    num_top = max(count for _, _, count in parts)
    return PromptJudgement(sent["hidden"], sent["targets"], tuple(parts), num_top)


def judge(
    judgement: PromptJudgement,
    hidden_TD: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    tokens_RL: Tensor,
    vocab_size: int,
) -> tuple[Tensor, ...]:
    """(target id [P], logprob [P], rank [P], top [P, C], top ids [P, C]), on the device."""
    target_P = tokens_RL.view(-1)[judgement.target_place_P].long()
    stride = max(1, MAX_SCORES // vocab_size)
    slices: list[tuple[Tensor, ...]] = []
    for first in range(0, target_P.shape[0], stride):
        part = slice(first, first + stride)
        logits_PV = logits_of(hidden_TD[judgement.hidden_index_P[part]])
        slices.append(sampling.token_logprobs(logits_PV, target_P[part], judgement.num_top))
    return (target_P, *(torch.cat(parts) for parts in zip(*slices, strict=True)))


def read_judgement(
    judgement: PromptJudgement, host: Sequence[Tensor]
) -> dict[int, tuple[TokenLogprobs, ...]]:
    """By row, from the tensors of `judge` on the host."""
    target_P, logprob_P, rank_P, top_PC, top_id_PC = (tensor.tolist() for tensor in host)
    by_row: dict[int, tuple[TokenLogprobs, ...]] = {}
    first = 0
    for row, length, count in judgement.parts:
        by_row[row] = tuple(
            TokenLogprobs(
                target_P[p],
                logprob_P[p],
                rank_P[p],
                tuple(zip(top_id_PC[p][:count], top_PC[p][:count], strict=True)),
            )
            for p in range(first, first + length)
        )
        first += length
    return by_row
