"""Decode steps as CUDA graphs: thousands of launches of a step become two replays.

A graph repeats the same kernels on the same addresses. So the step's inputs lie in tensors that
keep their places, the number of rows is rounded up to one of a few sizes, and so is the longest
context. One graph computes logits; a small second one draws, for each combination of sampling
features. Steps whose rows want more (penalties, logprobs, a grammar, …) replay the first and draw
as usual.

Padding costs little: it repeats the row with the shortest context, so it chooses no expert that is
not read anyway; attention reads that context again. Its keys go to a spare slot and its token to a
spare place.

Those of short contexts and most numbers of rows are recorded at the start, which also compiles what
numbers of rows need; others when they are first needed, after a run as usual, which gives that
step's result. Recording is a function that is given: with one that records nothing, all this runs
on a CPU.
"""

import logging
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from glimt.layers.attention import KvCache
from glimt.models.glm4v import Glm4v
from glimt.parallel.exchange import Exchange
from glimt.runner import streams
from glimt.runner.batch import Gathered, step_of
from glimt.runner.rows import RowTable
from glimt.runner.sampler import MAX_SCORES_PER_DRAW, DrawInputs
from glimt.runner.sampling_rows import num_candidates
from glimt.runner.split_draw import draw_over_ranks
from glimt.runner.staging import Array, FixedTensors

# B rows of a graph, padding included; N rows of the step; V vocabulary; U this rank's share of it.

log = logging.getLogger(__name__)

Work = Callable[[], None]
Record = Callable[[Work], Work]
"""Takes what has just been done once, gives what does it again."""

_ROW_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
# Attention of so many rows takes a second round of programs, sooner or later: 82 rows take 34 ms a
# step, and 36 in a graph of 96. Recorded when they are first needed, for the start is not to wait.
_ROW_SIZES_BETWEEN = (72, 80, 88, 104, 112, 120)
_ROWS_APART = 64  # sizes beyond the last one
_CONTEXTS = (2048, 8192, 32768)  # tokens, then the longest; kernels read true lengths themselves
_CANDIDATES = (64, 1024)  # what top_k is rounded up to, below the whole vocabulary
_STEP_ARRAYS = (
    "row_R",
    "positions_3T",
    "slots_T",
    "context_lens_R",
    "token_place_T",
    "drawn_place_N",
)


def cuda_recorder() -> Record:
    """Records CUDA graphs, all into one pool of memory: only one of them runs at a time."""
    pool = torch.cuda.graph_pool_handle()
    # What is recorded keeps the priority of the stream that it was recorded on.
    stream = streams.new_stream(None, "steps") if streams.OWN_STREAM else None

    def record(work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            work()
        replay: Work = graph.replay
        return replay

    return record


def row_sizes(max_rows: int) -> tuple[int, ...]:
    """The numbers of rows that graphs are made for; the last one is `max_rows`."""
    beyond = range(_ROW_SIZES[-1] + _ROWS_APART, max_rows, _ROWS_APART)
    sizes = sorted((*_ROW_SIZES, *_ROW_SIZES_BETWEEN, *beyond))
    return (*(size for size in sizes if size < max_rows), max_rows)


def sizes_at_start(max_rows: int) -> tuple[int, ...]:
    """Those of `row_sizes` whose graphs are recorded before the first request."""
    between = {*_ROW_SIZES_BETWEEN} - {max_rows}
    return tuple(size for size in row_sizes(max_rows) if size not in between)


class DrawKind(NamedTuple):
    """What the draw of a graph does; `features` are names of `SamplingRows.gather`."""

    features: frozenset[str] = frozenset()
    num_candidates: int = 0


@dataclass(frozen=True, slots=True)
class _Buffers:
    """The tensors that graphs of one number of rows read and write, which keep their places."""

    inputs: FixedTensors
    query_starts_B1: Tensor
    logits_BU: Tensor
    drawn_2B: Tensor  # tokens and their status

    @property
    def num_rows(self) -> int:
        """B."""
        return self.logits_BU.shape[0]


@dataclass(frozen=True, slots=True)
class DecodingPass:
    """A pass whose logits the device has been told to compute.

    Tensors keep their places, so they are good until the next pass. `draw` None: the rows want
    more than graphs draw.
    """

    logits_NU: Tensor
    drawn_place_N: Tensor
    draw: Callable[[], list[Tensor]] | None  # -> (tokens [N], status [N])


class Replays:
    """Work by key: done as it comes the first time, recorded, and replayed from then on."""

    def __init__(self, record: Record, num_ranks: int) -> None:
        self._record = record
        self._num_ranks = num_ranks
        self._by_key: dict[Hashable, Work | None] = {}

    @property
    def known(self) -> Collection[Hashable]:
        """The keys that there was work for."""
        return self._by_key.keys()

    def run(self, key: Hashable, work: Work) -> bool:
        """Replay what is recorded under `key`, else work and record it. False: it does not fit.

        All work may be done twice: it writes the same numbers to the same places again.
        """
        if key in self._by_key:
            replay = self._by_key[key]
            if replay is not None:
                replay()
            return replay is not None
        try:
            work()
        except torch.OutOfMemoryError:
            if self._num_ranks > 1:
                raise  # the other ranks go on with sums that this one would not add to
            log.warning("no memory for a step of %s as a graph", key)
            self._by_key[key] = None
            return False
        try:
            self._by_key[key] = self._record(work)
        except Exception:
            log.exception("no graph of %s: such steps run without, and slower", key)
            self._by_key[key] = work
        return True


def context_size(max_context_len: int, longest: int) -> int:
    """The context that a graph is made for; none is longer than `longest`."""
    return next((size for size in _CONTEXTS if max_context_len <= size < longest), longest)


class DecodeGraphs:
    """The graphs of one executor."""

    def __init__(
        self, model: Glm4v, rows: RowTable, kv: KvCache, spare_slot: int, record: Record
    ) -> None:
        """`spare_slot`: a slot of `kv` that no request is given."""
        self._model = model
        self._rows = rows
        self._kv = kv
        self._spare_slot = spare_slot
        self._replays = Replays(record, model.mesh.num_ranks)
        self._sizes = row_sizes(rows.max_rows)
        self._vocab_size = rows.sampling.vocab_size
        head = model.lm_head.weight
        self._logits_BU = torch.empty(
            self._sizes[-1], len(head), dtype=head.dtype, device=rows.device
        )
        self._buffers: dict[int, _Buffers] = {}

    def record_all(self) -> None:
        """Record the logits of `sizes_at_start`, largest first: smaller ones fit its memory."""
        context = self._context_size(1)
        for size in reversed(sizes_at_start(self._sizes[-1])):
            buffers = self._buffers.get(size) or self._make_buffers(size)  # of rows that do nothing
            self._replays.run((size, context), partial(self._compute_logits, buffers, context))

    def size_of(self, num_rows: int) -> int:
        """The rows of the graph for so many."""
        return next(size for size in self._sizes if size >= num_rows)

    def take_part(self, num_rows: int) -> None:
        """Compute experts for other replicas, whose graphs are for `num_rows`."""
        exchange = Exchange(num_rows)
        self._replays.run(("idle", num_rows), partial(self._model.take_part, exchange))

    def launch(self, gathered: Gathered, least_rows: int = 0) -> DecodingPass | None:
        """Compute the logits of a step that `is_decoding`; None if it must run without graphs.

        Rows are filled up to those of the graph for `least_rows` at least.
        """
        num_rows = len(gathered.row_N)
        size = self.size_of(max(num_rows, least_rows))
        buffers = self._buffers.get(size) or self._make_buffers(size)
        draws = self._draw_arrays(gathered)
        kind = draw_kind(draws, self._vocab_size)
        self._rows.send_pages()
        buffers.inputs.fill(self._padded(gathered, draws, size))
        context = self._context_size(gathered.max_context_len)
        if not self._replays.run((size, context), partial(self._compute_logits, buffers, context)):
            return None

        def draw_now() -> list[Tensor]:
            self._replays.run((size, kind), partial(self._draw, buffers, kind or DrawKind()))
            # A copy, for the next step overwrites it.
            token_N, status_N = buffers.drawn_2B[:, :num_rows].clone()
            return [token_N, status_N]

        return DecodingPass(
            logits_NU=buffers.logits_BU[:num_rows],
            drawn_place_N=buffers.inputs.tensors["drawn_place_N"][:num_rows],
            draw=None if kind is None else draw_now,
        )

    def _make_buffers(self, size: int) -> _Buffers:
        device = self._rows.device
        arrays: dict[str, Array] = {
            "row_R": np.zeros(size, np.int64),
            "positions_3T": np.zeros((3, size), np.int64),
            "slots_T": np.full(size, self._spare_slot, np.int64),
            "context_lens_R": np.ones(size, np.int32),
            "token_place_T": np.full(size, self._rows.spare_place, np.int64),
            "drawn_place_N": np.full(size, self._rows.spare_place, np.int64),
            **_no_draw(np.ones(size, np.int64), self._vocab_size),
        }
        buffers = self._buffers[size] = _Buffers(
            inputs=FixedTensors(arrays, device),
            query_starts_B1=torch.arange(size + 1, dtype=torch.int32, device=device),
            logits_BU=self._logits_BU[:size],
            drawn_2B=torch.zeros(2, size, dtype=torch.int64, device=device),
        )
        return buffers

    def _padded(
        self, gathered: Gathered, draws: Mapping[str, Array], size: int
    ) -> dict[str, Array]:
        """All inputs for `size` rows, the last of which repeat the row of the shortest context."""
        num_rows = len(gathered.row_N)
        shortest = int(gathered.arrays["context_lens_R"].argmin())
        index_B = np.full(size, shortest)
        index_B[:num_rows] = np.arange(num_rows)
        arrays = {name: gathered.arrays[name][..., index_B] for name in _STEP_ARRAYS}
        arrays["slots_T"][num_rows:] = self._spare_slot
        arrays["drawn_place_N"][num_rows:] = self._rows.spare_place
        neutral = _no_draw(gathered.end_N, self._vocab_size)
        return arrays | {name: draws.get(name, neutral[name])[index_B] for name in neutral}

    def _context_size(self, max_context_len: int) -> int:
        return context_size(max_context_len, self._rows.max_pages * self._rows.page_size)

    def _draw_arrays(self, gathered: Gathered) -> dict[str, Array]:
        row_N = gathered.row_N
        prompt_length_N = self._rows.num_prompt_tokens_R[row_N]
        return self._rows.sampling.gather(row_N, prompt_length_N, gathered.end_N)

    def _compute_logits(self, buffers: _Buffers, max_context_len: int) -> None:
        tensors, rows = buffers.inputs.tensors, self._rows
        step = step_of(
            rows, tensors, buffers.query_starts_B1, max_query_len=1, max_context_len=max_context_len
        )
        x_BD = self._model.embed(rows.tokens_RL.view(-1)[tensors["token_place_T"]])
        hidden_BD = self._model.decode(x_BD, step, self._kv)
        buffers.logits_BU.copy_(self._model.logits_share(hidden_BD))

    def _draw(self, buffers: _Buffers, kind: DrawKind) -> None:
        """Draw for all rows, padding too, a part at a time as in `prepare_draws`."""
        tensors, tokens_RL = buffers.inputs.tensors, self._rows.tokens_RL
        stride = max(1, MAX_SCORES_PER_DRAW // self._vocab_size)
        for first in range(0, buffers.num_rows, stride):
            part = slice(first, min(first + stride, buffers.num_rows))
            names = {"length_N", *kind.features}
            inputs = DrawInputs(
                first=first,
                count=part.stop - first,
                tensors={name: tensors[name][part] for name in names},
                num_candidates=kind.num_candidates,
                max_length=0,
                logprob_rows=(),
            )
            outputs = draw_over_ranks(buffers.logits_BU, tokens_RL, inputs, self._model.mesh)
            buffers.drawn_2B[0, part] = outputs.token_N
            buffers.drawn_2B[1, part] = outputs.status_N
        tokens_RL.view(-1)[tensors["drawn_place_N"]] = buffers.drawn_2B[0].int()


def plain_draw(num_rows: int) -> DrawInputs:
    """How the outputs of a graph's draw are to be read."""
    return DrawInputs(0, num_rows, {}, 0, 0, ())


def draw_kind(arrays: Mapping[str, Array], vocab_size: int) -> DrawKind | None:
    """The kind of draw that gives what `arrays` of `SamplingRows.gather` want; None: no graph's."""
    features = arrays.keys() - {"row_N", "length_N"}
    if not features <= _no_draw(arrays["length_N"], vocab_size).keys():
        return None
    candidates = 0
    if "top_k_N" in features:
        needed = num_candidates(arrays["top_k_N"], arrays["top_p_N"], vocab_size)
        sizes = (size for size in _CANDIDATES if needed <= size < vocab_size)
        candidates = next(sizes, vocab_size)
    return DrawKind(frozenset(features), candidates)


def _no_draw(length_N: Array, vocab_size: int) -> dict[str, Array]:
    """Arrays of greedy rows, of all that graphs may draw by."""
    size = len(length_N)
    return {
        "length_N": length_N,
        "is_random_N": np.zeros(size, np.bool_),
        "seed_N": np.zeros(size, np.int64),
        "temperature_N": np.ones(size, np.float32),
        "min_p_N": np.zeros(size, np.float32),
        "top_k_N": np.full(size, vocab_size, np.int64),
        "top_p_N": np.ones(size, np.float32),
    }
