"""Carries plans out: rows, images, one forward pass, one draw, the copy back; never waits.

The device runs one stream of steps in the order of their plans. A token drawn in one step is
written to its row's history on the device, where the next step reads it, so step n + 1 can be
launched before the host has seen what step n drew.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glimt.engine.plan import NewRow, RowWork, StepPlan, StepResult
from glimt.errors import StepFailed
from glimt.layers.attention import KvCache
from glimt.models.glm4v import Glm4v
from glimt.runner.batch import Batch, build_batch
from glimt.runner.encoder import ImageEncoder
from glimt.runner.forward import hidden_states
from glimt.runner.prompt_logprobs import PromptJudgement, judge, read_judgement
from glimt.runner.rows import RowTable
from glimt.runner.sampler import DrawInputs, DrawOutputs, draw, read_draw
from glimt.runner.staging import ReturnedTensors, ReturnPath
from glimt.wire import ErrorInfo, ImageSpan

logger = logging.getLogger(__name__)

_BAD_ROW = ErrorInfo(StepFailed.code, "The request could not be prepared for the model.")


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step on its way; see `glimt.engine.plan.InFlight`."""

    plan: StepPlan
    failed: dict[int, ErrorInfo]
    sampling_rows: list[int]
    draws: list[DrawInputs]
    judgement: PromptJudgement | None
    returned: ReturnedTensors

    def result(self) -> StepResult:
        """Wait for the step's tokens. Raises what the device raised."""
        host = list(self.returned.wait())
        result = StepResult(step=self.plan.step, failed=dict(self.failed))
        for inputs in self.draws:
            token_N, status_N, *logprobs = host[: _num_tensors(inputs)]
            del host[: _num_tensors(inputs)]
            outputs = DrawOutputs(token_N, status_N, tuple(logprobs))
            rows = self.sampling_rows[inputs.first : inputs.first + inputs.count]
            tokens, logprobs_of, failed = read_draw(inputs, outputs, rows)
            result.token_ids.update(tokens)
            result.logprobs.update(logprobs_of)
            result.failed.update(failed)
        if self.judgement is not None:
            result.prompt_logprobs.update(read_judgement(self.judgement, host))
        return result


@dataclass(frozen=True, slots=True)
class CrashedStep:
    """A step that raised while it was launched."""

    plan: StepPlan
    error: Exception

    def result(self) -> StepResult:
        """Raises the error, with the traceback of the launch."""
        raise self.error


class ModelExecutor:
    """`glimt.engine.plan.Executor` for one device. Build it with `runner.build.build_executor`."""

    def __init__(
        self, model: Glm4v, rows: RowTable, kv: KvCache, encoder: ImageEncoder, device: torch.device
    ) -> None:
        self._model = model
        self._rows = rows
        self._kv = kv
        self._encoder = encoder
        self._return_path = ReturnPath(device)

    def launch(self, plan: StepPlan) -> LaunchedStep | CrashedStep:
        """Start a step; returns without waiting for the device (on a CPU: when it is done).

        Never raises: what concerns one row is in the result's `failed`, the rest is raised by
        `result()`, after which later plans may still be launched.
        """
        try:
            with torch.inference_mode():
                return self._launch(plan)
        except Exception as error:
            logger.exception("step %d failed", plan.step)
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
        sampling_rows: list[int] = []
        draws: list[DrawInputs] = []
        judgement: PromptJudgement | None = None
        tensors: list[Tensor] = []
        if work := self._healthy(plan.work):
            batch = build_batch(rows, work)
            sampling_rows, draws, judgement = batch.sampling_rows, batch.draws, batch.judgement
            tensors = self._compute(batch)
        failed = {item.row: rows.errors[item.row] for item in plan.work if item.row in rows.errors}
        returned = self._return_path.send(tensors)
        return LaunchedStep(plan, failed, sampling_rows, draws, judgement, returned)

    def _take(self, new: NewRow) -> None:
        try:
            self._rows.take(new)
        except Exception:
            logger.exception("cannot take row %d", new.row)
            self._rows.errors[new.row] = _BAD_ROW

    def _healthy(self, work: Sequence[RowWork]) -> list[RowWork]:
        return [item for item in work if item.row not in self._rows.errors]

    def _encode(self, plan: StepPlan) -> None:
        """Encode the plan's images and any that its rows miss; rows of broken ones are lost."""
        spans_of: dict[int, list[ImageSpan]] = {}
        for item in self._healthy(plan.work):
            parts = self._rows.image_parts(item.row, item.start, item.start + item.num_tokens)
            if parts:
                spans_of[item.row] = [part.span for part in parts]
        used = [span for spans in spans_of.values() for span in spans]
        errors = self._encoder.encode(plan.encode, used)
        for row, spans in spans_of.items():
            for span in spans:
                if span.content_hash in errors:
                    self._rows.errors[row] = errors[span.content_hash]

    def _compute(self, batch: Batch) -> list[Tensor]:
        """Forward pass and draw: device work only, a function of `batch` and the device's state.

        Gives what `LaunchedStep.result` reads: the tensors of each draw, then of the judgement.
        """
        tokens_RL = self._rows.tokens_RL
        hidden_TD = hidden_states(self._model, batch, tokens_RL, self._encoder, self._kv)
        tensors: list[Tensor] = []
        if batch.draws:
            logits_NV = self._model.logits(hidden_TD[batch.hidden_index_N])
            outputs = [draw(logits_NV, tokens_RL, inputs) for inputs in batch.draws]
            token_N = torch.cat([output.token_N for output in outputs])
            tokens_RL.view(-1)[batch.drawn_place_N] = token_N.int()
            tensors += [tensor for output in outputs for tensor in _tensors(output)]
        if batch.judgement is not None:
            vocab_size = self._rows.sampling.vocab_size
            tensors += judge(batch.judgement, hidden_TD, self._model.logits, tokens_RL, vocab_size)
        return tensors


def _tensors(outputs: DrawOutputs) -> tuple[Tensor, ...]:
    return (outputs.token_N, outputs.status_N, *outputs.logprobs)


def _num_tensors(inputs: DrawInputs) -> int:
    return 6 if inputs.logprob_rows else 2
