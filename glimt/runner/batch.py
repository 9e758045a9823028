"""The work of a step as the tensors of one forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from glimt.engine.plan import RowWork
from glimt.layers.attention import Step
from glimt.parallel.exchange import AS_THEY_ARE, Exchange
from glimt.runner.prompt_logprobs import PromptJudgement, prepare_judgement
from glimt.runner.rows import ImagePart, RowTable
from glimt.runner.sampler import DrawInputs, prepare_draws
from glimt.runner.staging import Array, to_device

# R rows of this step, T tokens of all rows, N rows that sample, I tokens that are image.
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass. Building it launches nothing but copies; running it reads no host state.

    `token_place_T`, `drawn_place_N`: flat places in the rows' token table, to read from and to
    write the drawn tokens to. `hidden_index_N`: the tokens whose hidden state gives logits.
    """

    step: Step
    token_place_T: Tensor
    hidden_index_N: Tensor
    drawn_place_N: Tensor
    draws: list[DrawInputs]
    sampling_rows: list[int]
    judgement: PromptJudgement | None
    image_index_I: Tensor | None
    image_parts: list[ImagePart]


@dataclass(frozen=True, slots=True)
class Gathered:
    """The work of a step as arrays on the host; see `Batch` for their meaning."""

    arrays: dict[str, Array]
    query_starts_R1: IntArray
    row_N: IntArray
    end_N: IntArray  # tokens that row n has when it draws
    image_parts: list[ImagePart]
    max_query_len: int
    max_context_len: int
    num_chunk_pages: int = 0  # of all rows of several tokens together; 0 if that is not known

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.query_starts_R1) - 1

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.query_starts_R1[-1])

    @property
    def is_decoding(self) -> bool:
        """Each row computes one token and draws the next, and none of them is image."""
        all_draw = len(self.row_N) == self.num_rows
        return self.max_query_len == 1 and all_draw and not self.image_parts


def gather_work(rows: RowTable, work: Sequence[RowWork]) -> Gathered:
    """The arrays of `work`, whose rows `RowTable.advance` has been told of, in its order.

    Raises ValueError if the work asks for tokens or pages that its row does not have.
    """
    row_R = np.array([item.row for item in work], np.int64)
    start_R = np.array([item.start for item in work], np.int64)
    count_R = np.array([item.num_tokens for item in work], np.int64)
    samples_R = np.array([item.samples for item in work], np.bool_)
    end_R = start_R + count_R
    _check_work(rows, row_R, start_R, end_R, samples_R)
    query_starts_R1 = np.concatenate([np.zeros(1, np.int64), count_R.cumsum()])

    row_T = row_R.repeat(count_R)
    index_T = np.arange(query_starts_R1[-1]) + (start_R - query_starts_R1[:-1]).repeat(count_R)
    row_N, end_N = row_R[samples_R], end_R[samples_R]
    image_parts, image_index_I = _image_places(rows, work, row_R, start_R, query_starts_R1)
    num_slots = rows.tokens_RL.shape[1]
    arrays: dict[str, Array] = {
        "row_R": row_R,
        "positions_3T": _positions(rows, work, row_T, index_T, query_starts_R1),
        "slots_T": rows.pages_RP[row_T, index_T // rows.page_size].astype(np.int64) * rows.page_size
        + index_T % rows.page_size,
        "query_starts_R1": query_starts_R1.astype(np.int32),
        "context_lens_R": end_R.astype(np.int32),
        "token_place_T": row_T * num_slots + index_T,
        "hidden_index_N": query_starts_R1[1:][samples_R] - 1,
        "drawn_place_N": row_N * num_slots + end_N,
        "image_index_I": image_index_I,
    }
    return Gathered(
        arrays=arrays,
        query_starts_R1=query_starts_R1,
        row_N=row_N,
        end_N=end_N,
        image_parts=image_parts,
        max_query_len=int(count_R.max()),
        max_context_len=int(end_R.max()),
        num_chunk_pages=int((-(-end_R[count_R > 1] // rows.page_size)).sum()),
    )


def build_batch(
    rows: RowTable,
    work: Sequence[RowWork],
    gathered: Gathered,
    exchange: Exchange = AS_THEY_ARE,
) -> Batch:
    """The batch of `gathered`, which was made of `work`, on the device."""
    rows.send_pages()
    tensors = to_device(gathered.arrays, rows.device)
    step = step_of(
        rows,
        tensors,
        tensors["query_starts_R1"],
        max_query_len=gathered.max_query_len,
        max_context_len=gathered.max_context_len,
        num_chunk_pages=gathered.num_chunk_pages,
        exchange=exchange,
    )
    return Batch(
        step=step,
        token_place_T=tensors["token_place_T"],
        hidden_index_N=tensors["hidden_index_N"],
        drawn_place_N=tensors["drawn_place_N"],
        draws=gathered_draws(rows, gathered),
        sampling_rows=gathered.row_N.tolist(),
        judgement=prepare_judgement(rows, work, gathered.query_starts_R1),
        image_index_I=tensors["image_index_I"] if gathered.image_parts else None,
        image_parts=gathered.image_parts,
    )


def step_of(
    rows: RowTable,
    tensors: Mapping[str, Tensor],
    query_starts_R1: Tensor,
    *,
    max_query_len: int,
    max_context_len: int,
    num_chunk_pages: int = 0,
    exchange: Exchange = AS_THEY_ARE,
) -> Step:
    """What the layers are told of a step whose arrays, as `Gathered.arrays` names them, are on the
    device. Its page table has the pages of `max_context_len` tokens.
    """
    num_pages = -(-max_context_len // rows.page_size)
    return Step(
        positions_3T=tensors["positions_3T"],
        slots_T=tensors["slots_T"],
        page_table_RM=rows.page_table_RP[tensors["row_R"], :num_pages],
        query_starts_R1=query_starts_R1,
        context_lens_R=tensors["context_lens_R"],
        max_query_len=max_query_len,
        max_context_len=max_context_len,
        num_chunk_pages=num_chunk_pages,
        exchange=exchange,
    )


def gathered_draws(rows: RowTable, gathered: Gathered) -> list[DrawInputs]:
    """Inputs of the draws of the rows that sample, with all features that they use."""
    row_N = gathered.row_N
    return prepare_draws(
        rows.sampling, row_N, rows.num_prompt_tokens_R[row_N], gathered.end_N, rows.device
    )


def _check_work(
    rows: RowTable, row_R: IntArray, start_R: IntArray, end_R: IntArray, samples_R: Array
) -> None:
    is_bad_R = (start_R < 0) | (start_R >= end_R)
    is_bad_R |= end_R + samples_R > rows.num_tokens_R[row_R]
    is_bad_R |= end_R > rows.num_pages_R[row_R] * rows.page_size
    is_bad_R |= end_R >= rows.tokens_RL.shape[1]  # the drawn token needs a place as well
    if is_bad_R.any():
        r = int(is_bad_R.argmax())
        row = int(row_R[r])
        raise ValueError(
            f"row {row} cannot compute [{start_R[r]}, {end_R[r]}): it has "
            f"{rows.num_tokens_R[row]} tokens and {rows.num_pages_R[row]} pages"
        )


def _positions(
    rows: RowTable,
    work: Sequence[RowWork],
    row_T: IntArray,
    index_T: IntArray,
    query_starts_R1: IntArray,
) -> IntArray:
    """Three rotary positions of each token, int64 [3, T]."""
    is_generated_T = index_T >= rows.num_prompt_tokens_R[row_T]
    position_T = index_T + np.where(is_generated_T, rows.rope_delta_R[row_T], 0)
    positions_3T = np.repeat(position_T[None], 3, axis=0)
    start_R = index_T[query_starts_R1[:-1]]
    num_prompt_R = rows.num_prompt_tokens_R[row_T[query_starts_R1[:-1]]]
    for r in np.flatnonzero(start_R < num_prompt_R).tolist():
        item = work[r]
        stop = min(item.start + item.num_tokens, int(num_prompt_R[r]))
        given = rows.positions(item.row, item.start, stop)
        if given is not None:
            first = query_starts_R1[r]
            positions_3T[:, first : first + given.shape[1]] = given
    return positions_3T


def _image_places(
    rows: RowTable,
    work: Sequence[RowWork],
    row_R: IntArray,
    start_R: IntArray,
    query_starts_R1: IntArray,
) -> tuple[list[ImagePart], IntArray]:
    """The image parts in the batch, and the places of all their tokens in it, in order."""
    parts: list[ImagePart] = []
    places = [np.zeros(0, np.int64)]
    for r in np.flatnonzero(start_R < rows.images_end_R[row_R]).tolist():
        item = work[r]
        for part in rows.image_parts(item.row, item.start, item.start + item.num_tokens):
            parts.append(part)
            places.append(query_starts_R1[r] + part.target + np.arange(part.high - part.low))
    return parts, np.concatenate(places)
