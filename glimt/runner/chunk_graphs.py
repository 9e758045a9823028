"""Steps that compute prompts as CUDA graphs, where launching would take longer than computing.

A step of some hundred tokens keeps the device busy for less time than the host needs to launch its
thousand operations one by one. So steps of up to `MAX_TOKENS` are replayed as well: tokens and rows
are rounded up, and the layers run from embeddings, which are made as usual (images among them), to
hidden states, from which the step goes on as usual.

Padding is rows of its own: each has one token, the last one all that are left. Their keys go to
a spare slot, and what they read does not matter.

Sizes of few rows and short contexts are recorded at the start, others when they come for the second
time, so that no rare one costs a recording.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from glimt.layers.attention import KvCache
from glimt.models.glm4v import Glm4v
from glimt.runner.batch import Gathered, step_of
from glimt.runner.graphs import Record, Replays, context_size
from glimt.runner.rows import RowTable
from glimt.runner.staging import Array, FixedTensors

# T tokens and R rows of a step; B tokens and S rows of a graph, padding included.

MAX_TOKENS = 2048  # beyond, the device takes longer than the host
MAX_GRAPHS = 96  # each takes some megabytes
_TOKEN_SIZES = (128, 256, 384, 512, 768, 1024, 1280, 1536, 1792, MAX_TOKENS)
_ROW_SIZES = (8, 32, 128, 288)


@dataclass(frozen=True, slots=True)
class _Size:
    """What a graph is made for."""

    num_tokens: int
    num_rows: int
    max_context_len: int


class ChunkGraphs:
    """The graphs of one executor's steps with prompts."""

    def __init__(
        self, model: Glm4v, rows: RowTable, kv: KvCache, spare_slot: int, record: Record
    ) -> None:
        """`spare_slot`: a slot of `kv` that no request is given."""
        self._model = model
        self._rows = rows
        self._kv = kv
        self._spare_slot = spare_slot
        self._replays = Replays(record, model.mesh.num_ranks)
        self._seen: set[Hashable] = set()
        self._inputs: dict[tuple[int, int], FixedTensors] = {}
        shape = (MAX_TOKENS, model.config.text.hidden_size)
        dtype = model.embedding.weight.dtype
        self._x_BD = torch.zeros(shape, dtype=dtype, device=rows.device)
        self._hidden_BD = torch.zeros(shape, dtype=dtype, device=rows.device)

    def record_all(self) -> None:
        """Record all numbers of tokens, largest first, in few rows: smaller ones fit its memory."""
        nothing = Gathered(
            arrays={
                "row_R": np.zeros(0, np.int64),
                "positions_3T": np.zeros((3, 0), np.int64),
                "slots_T": np.zeros(0, np.int64),
                "context_lens_R": np.zeros(0, np.int32),
            },
            query_starts_R1=np.zeros(1, np.int64),
            row_N=np.zeros(0, np.int64),
            end_N=np.zeros(0, np.int64),
            image_parts=[],
            max_query_len=0,
            max_context_len=0,
        )
        longest = self._rows.max_pages * self._rows.page_size
        for num_tokens in reversed(_TOKEN_SIZES):
            size = _Size(num_tokens, _ROW_SIZES[0], context_size(num_tokens, longest))
            if num_tokens <= longest:
                self._seen.add(size)
                self._run(size, nothing)

    def decode(self, gathered: Gathered, x_TD: Tensor) -> Tensor | None:
        """`Glm4v.decode` of a step whose pages have been sent; None if no graph is made for it.

        The result keeps its place, so it is good until the next step.
        """
        size = self._size(gathered)
        if size is None:
            return None
        if size not in self._seen:
            self._seen.add(size)
            return None
        if size not in self._replays.known and len(self._replays.known) >= MAX_GRAPHS:
            return None
        num_tokens = x_TD.shape[0]
        self._x_BD[:num_tokens].copy_(x_TD)
        return self._hidden_BD[:num_tokens] if self._run(size, gathered) else None

    def _run(self, size: _Size, gathered: Gathered) -> bool:
        shape = (size.num_tokens, size.num_rows)
        arrays = _padded(gathered, size, self._spare_slot)
        if shape in self._inputs:
            self._inputs[shape].fill(arrays)
        else:
            self._inputs[shape] = FixedTensors(arrays, self._rows.device)
        tensors = self._inputs[shape].tensors
        return self._replays.run(size, partial(self._compute, size, tensors))

    def _size(self, gathered: Gathered) -> _Size | None:
        num_tokens, num_rows = gathered.num_tokens, gathered.num_rows
        rows = next((size for size in _ROW_SIZES if size > num_rows), None)
        if rows is None:
            return None
        least = num_tokens + rows - num_rows  # each row of padding has a token
        tokens = next((size for size in _TOKEN_SIZES if size >= least), None)
        if tokens is None:
            return None
        longest = self._rows.max_pages * self._rows.page_size
        context = context_size(max(gathered.max_context_len, tokens - num_tokens), longest)
        if tokens - num_tokens > context:
            return None
        return _Size(tokens, rows, context)

    def _compute(self, size: _Size, tensors: dict[str, Tensor]) -> None:
        step = step_of(
            self._rows,
            tensors,
            tensors["query_starts_R1"],
            max_query_len=size.num_tokens,
            max_context_len=size.max_context_len,
        )
        hidden_BD = self._model.decode(self._x_BD[: size.num_tokens], step, self._kv)
        self._hidden_BD[: size.num_tokens].copy_(hidden_BD)


def _padded(gathered: Gathered, size: _Size, spare_slot: int) -> dict[str, Array]:
    """The step's arrays for B tokens of S rows."""
    num_tokens, num_rows = gathered.num_tokens, gathered.num_rows
    more_tokens, more_rows = size.num_tokens - num_tokens, size.num_rows - num_rows
    counts = np.ones(more_rows, np.int64)
    counts[-1] = more_tokens - (more_rows - 1)
    given = gathered.arrays
    starts = np.concatenate([gathered.query_starts_R1, num_tokens + counts.cumsum()])
    return {
        "row_R": np.concatenate([given["row_R"], np.zeros(more_rows, np.int64)]),
        "positions_3T": np.pad(given["positions_3T"], ((0, 0), (0, more_tokens))),
        "slots_T": np.concatenate([given["slots_T"], np.full(more_tokens, spare_slot, np.int64)]),
        "query_starts_R1": starts.astype(np.int32),
        "context_lens_R": np.concatenate([given["context_lens_R"], counts.astype(np.int32)]),
    }
