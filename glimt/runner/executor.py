"""Carries plans out: rows, images, one forward pass, one draw, the copy back; never waits.

The device runs one stream of steps in the order of their plans. A token drawn in one step is
written to its row's history on the device, where the next step reads it, so step n + 1 can be
launched before the host has seen what step n drew. Only rows under a grammar need the host between
the forward pass and the draw: their step draws when it is given its masks.

Images that no row of a step reads are encoded a slice at a time behind it, or beside it.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from glimt.engine.plan import Lockstep, NewRow, RowWork, StepPlan
from glimt.errors import StepFailed
from glimt.layers.attention import KvCache
from glimt.models.glm4v import Glm4v
from glimt.parallel.exchange import AS_THEY_ARE, Exchange, exchange_of
from glimt.runner.batch import Batch, Gathered, build_batch, gather_work, gathered_draws
from glimt.runner.chunk_graphs import ChunkGraphs
from glimt.runner.encoder import ImageEncoder
from glimt.runner.forward import embedded
from glimt.runner.graphs import DecodeGraphs, plain_draw
from glimt.runner.launched import BeginDraw, CrashedStep, LaunchedStep
from glimt.runner.prompt_logprobs import PromptJudgement, judge
from glimt.runner.rows import RowTable
from glimt.runner.sampler import DrawInputs, DrawOutputs
from glimt.runner.split_draw import draw_over_ranks
from glimt.runner.staging import ReturnedTensors, ReturnPath
from glimt.runner.streams import Streams
from glimt.wire import ErrorInfo, ImageSpan

log = logging.getLogger(__name__)

_BAD_ROW = ErrorInfo(StepFailed.code, "The request could not be prepared for the model.")


class ModelExecutor:
    """`glimt.engine.plan.Executor` for one device. Build it with `runner.build.build_executor`."""

    def __init__(
        self,
        model: Glm4v,
        rows: RowTable,
        kv: KvCache,
        encoder: ImageEncoder,
        device: torch.device,
        graphs: DecodeGraphs | None = None,
        chunk_graphs: ChunkGraphs | None = None,
        streams: Streams | None = None,
    ) -> None:
        self._model = model
        self._rows = rows
        self._kv = kv
        self._encoder = encoder
        self._graphs = graphs
        self._chunk_graphs = chunk_graphs
        self.streams = streams or Streams(device)
        self._return_path = ReturnPath(device)

    @property
    def replays_prompts(self) -> bool:
        """Graphs are made of steps with prompts too."""
        return self._chunk_graphs is not None

    @torch.inference_mode()
    def record_graphs(self) -> None:
        """Record the graphs that most steps will want, if there are any; takes seconds."""
        with self.streams.of_steps():
            if self._graphs is not None:
                self._graphs.record_all()
            if self._chunk_graphs is not None:
                self._chunk_graphs.record_all()

    def launch(self, plan: StepPlan) -> LaunchedStep | CrashedStep:
        """Start a step; returns without waiting for the device (on a CPU: when it is done).

        Never raises: what concerns one row is in the result's `failed`, the rest is raised by
        `result()`, after which later plans may still be launched.
        """
        try:
            with torch.inference_mode(), self.streams.of_steps():
                step = self._launch(plan)
                self._encoder.launch_slices(_num_tokens_of_all(plan))
                return step
        except Exception as error:
            log.exception("step %d failed", plan.step)
            return CrashedStep(plan, error)

    def _launch(self, plan: StepPlan) -> LaunchedStep:
        rows = self._rows
        for row in plan.freed_rows:
            rows.free(row)
        for new in plan.new_rows:
            self._take(new)
        self._encoder.drop(plan.drop_images)
        rows.advance(self._healthy(plan.work))
        self._encode(plan)
        work = self._healthy(plan.work)
        failed = {item.row: rows.errors[item.row] for item in plan.work if item.row in rows.errors}
        exchange = self._exchange(plan.lockstep)
        if not work:
            if plan.lockstep is not None:
                self._take_part(plan.lockstep, exchange)
            return self._launched(plan, failed, [], [], lambda _: self._return_path.send([]))
        gathered = gather_work(rows, work)
        may_replay = plan.lockstep is None or plan.lockstep.all_decode
        if self._graphs is not None and gathered.is_decoding and may_replay:
            step = self._replay(plan, failed, gathered, self._graphs)
            if step is not None:
                return step
        batch = build_batch(rows, work, gathered, exchange)
        logits_NU, judged = self._forward(batch, gathered)

        def begin_draw(draws: Sequence[DrawInputs]) -> ReturnedTensors:
            drawn = self._draw(batch.drawn_place_N, logits_NU, draws)
            return self._return_path.send([*drawn, *judged])

        return self._launched(
            plan, failed, batch.sampling_rows, batch.draws, begin_draw, batch.judgement
        )

    def _launched(
        self,
        plan: StepPlan,
        failed: dict[int, ErrorInfo],
        sampling_rows: list[int],
        draws: list[DrawInputs],
        begin_draw: BeginDraw,
        judgement: PromptJudgement | None = None,
    ) -> LaunchedStep:
        return LaunchedStep(
            plan,
            failed,
            sampling_rows,
            draws,
            judgement,
            begin_draw,
            self._rows.device,
            streams=self.streams,
            encoded=self._encoder.encoded,
        )

    def _exchange(self, lockstep: Lockstep | None) -> Exchange:
        """How this step's rows reach experts of other replicas. Those that replay graphs exchange
        the rows of the graph, so all do."""
        if lockstep is None:
            return AS_THEY_ARE
        num_rows = lockstep.max_tokens
        if lockstep.all_decode and self._graphs is not None:
            num_rows = self._graphs.size_of(num_rows)
        mesh = self._model.mesh
        may_wait = not lockstep.all_decode
        return exchange_of(mesh.exchange_backend, mesh.dp_size, num_rows, may_wait=may_wait)

    def _take_part(self, lockstep: Lockstep, exchange: Exchange) -> None:
        if lockstep.all_decode and self._graphs is not None:
            self._graphs.take_part(exchange.num_rows)
        else:
            self._model.take_part(exchange)

    def _replay(
        self, plan: StepPlan, failed: dict[int, ErrorInfo], gathered: Gathered, graphs: DecodeGraphs
    ) -> LaunchedStep | None:
        """The step by graphs, if they can."""
        least_rows = 0 if plan.lockstep is None else plan.lockstep.max_tokens
        decoding = graphs.launch(gathered, least_rows)
        if decoding is None:
            return None
        draw_now = None if plan.waits_for_masks else decoding.draw
        if draw_now is None:
            draws = gathered_draws(self._rows, gathered)
        else:
            draws = [plain_draw(len(gathered.row_N))]

        def begin_draw(draws: Sequence[DrawInputs]) -> ReturnedTensors:
            if draw_now is not None:
                return self._return_path.send(draw_now())
            return self._return_path.send(
                self._draw(decoding.drawn_place_N, decoding.logits_NU, draws)
            )

        return self._launched(plan, failed, gathered.row_N.tolist(), draws, begin_draw)

    def _take(self, new: NewRow) -> None:
        try:
            self._rows.take(new)
        except Exception:
            log.exception("cannot take row %d", new.row)
            self._rows.errors[new.row] = _BAD_ROW

    def _healthy(self, work: Sequence[RowWork]) -> list[RowWork]:
        return [item for item in work if item.row not in self._rows.errors]

    def _encode(self, plan: StepPlan) -> None:
        """Start the plan's images, and finish those that its rows read; rows of broken ones are
        lost."""
        spans_of: dict[int, list[ImageSpan]] = {}
        for item in self._healthy(plan.work):
            parts = self._rows.image_parts(item.row, item.start, item.start + item.num_tokens)
            if parts:
                spans_of[item.row] = [part.span for part in parts]
        self._encoder.start(plan.encode)
        errors = self._encoder.finish(span for spans in spans_of.values() for span in spans)
        for row, spans in spans_of.items():
            for span in spans:
                if span.content_hash in errors:
                    self._rows.errors[row] = errors[span.content_hash]

    def _forward(self, batch: Batch, gathered: Gathered) -> tuple[Tensor | None, list[Tensor]]:
        """This rank's logits [N, U] of the rows that draw, and the tensors of the judgement.

        Device work only, a function of `batch` and the device's state; so is `_draw`.
        """
        tokens_RL = self._rows.tokens_RL
        x_TD = embedded(self._model, batch, tokens_RL, self._encoder)
        hidden_TD = None
        if self._chunk_graphs is not None:
            hidden_TD = self._chunk_graphs.decode(gathered, x_TD)
        if hidden_TD is None:
            hidden_TD = self._model.decode(x_TD, batch.step, self._kv)
        logits_NU = None
        if batch.draws:
            logits_NU = self._model.logits_share(hidden_TD[batch.hidden_index_N])
        judged: list[Tensor] = []
        if batch.judgement is not None:
            vocab_size = self._rows.sampling.vocab_size
            judged = [*judge(batch.judgement, hidden_TD, self._model.logits, tokens_RL, vocab_size)]
        return logits_NU, judged

    def _draw(
        self, drawn_place_N: Tensor, logits_NU: Tensor | None, draws: Sequence[DrawInputs]
    ) -> list[Tensor]:
        """Draw, and write the tokens to their rows' histories."""
        if logits_NU is None:
            return []
        tokens_RL, mesh = self._rows.tokens_RL, self._model.mesh
        outputs = [draw_over_ranks(logits_NU, tokens_RL, inputs, mesh) for inputs in draws]
        token_N = torch.cat([output.token_N for output in outputs])
        tokens_RL.view(-1)[drawn_place_N] = token_N.int()
        return [tensor for output in outputs for tensor in _tensors(output)]


def _num_tokens_of_all(plan: StepPlan) -> int:
    """Tokens that a slice of the tower would keep waiting; other replicas wait for this one."""
    return plan.num_tokens if plan.lockstep is None else plan.lockstep.max_tokens


def _tensors(outputs: DrawOutputs) -> tuple[Tensor, ...]:
    return (outputs.token_N, outputs.status_N, *outputs.logprobs)
