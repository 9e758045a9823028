"""Steps on their way: they draw at once or when they are given masks, and can be waited for."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from glimt.engine.plan import StepPlan, StepResult, TokenMasks
from glimt.runner.prompt_logprobs import PromptJudgement, read_judgement
from glimt.runner.sampler import DrawInputs, DrawOutputs, masked, read_draw
from glimt.runner.staging import ReturnedTensors
from glimt.runner.streams import Streams
from glimt.wire import ErrorInfo

log = logging.getLogger(__name__)

# Starts draws, and the way to the host of what they and the judgement give.
BeginDraw = Callable[[Sequence[DrawInputs]], ReturnedTensors]


class LaunchedStep:
    """A step whose forward pass is launched; see `glimt.engine.plan.InFlight`."""

    def __init__(
        self,
        plan: StepPlan,
        failed: dict[int, ErrorInfo],
        sampling_rows: list[int],
        draws: list[DrawInputs],
        judgement: PromptJudgement | None,
        begin_draw: BeginDraw,
        device: torch.device,
        *,
        streams: Streams,
        encoded: Callable[[], tuple[bytes, ...]],
    ) -> None:
        """Calls `begin_draw` at once unless the plan waits for masks. Raises what it raises.

        `encoded`: see `StepResult`; asked when the result is.
        """
        self.plan = plan
        self._streams = streams
        self._encoded = encoded
        self._failed = failed
        self._sampling_rows = sampling_rows
        self._draws = draws
        self._judgement = judgement
        self._device = device
        self._error: Exception | None = None
        self._begin_draw = begin_draw if plan.waits_for_masks else None  # holds the logits
        self._returned = None if plan.waits_for_masks else begin_draw(draws)

    def draw(self, masks: TokenMasks) -> None:
        """See `InFlight`."""
        begin_draw, self._begin_draw = self._begin_draw, None
        if begin_draw is None:
            return
        try:
            with torch.inference_mode(), self._streams.of_steps():
                self._draws = [
                    masked(inputs, self._rows_of(inputs), masks, self._device)
                    for inputs in self._draws
                ]
                self._returned = begin_draw(self._draws)
        except Exception as error:
            log.exception("step %d failed at its draw", self.plan.step)
            self._error = error

    def result(self) -> StepResult:
        """Wait for the step's tokens. Raises what the device raised."""
        if self._returned is None:
            raise self._error or RuntimeError(f"step {self.plan.step} was given no masks")
        host = list(self._returned.wait())
        result = StepResult(self.plan.step, failed=dict(self._failed), encoded=self._encoded())
        for inputs in self._draws:
            token_N, status_N, *logprobs = host[: _num_tensors(inputs)]
            del host[: _num_tensors(inputs)]
            outputs = DrawOutputs(token_N, status_N, tuple(logprobs))
            tokens, logprobs_of, failed = read_draw(inputs, outputs, self._rows_of(inputs))
            result.token_ids.update(tokens)
            result.logprobs.update(logprobs_of)
            result.failed.update(failed)
        if self._judgement is not None:
            result.prompt_logprobs.update(read_judgement(self._judgement, host))
        return result

    def _rows_of(self, inputs: DrawInputs) -> list[int]:
        return self._sampling_rows[inputs.first : inputs.first + inputs.count]


@dataclass(frozen=True, slots=True)
class CrashedStep:
    """A step that raised while it was launched."""

    plan: StepPlan
    error: Exception

    def draw(self, masks: TokenMasks) -> None:
        """There is nothing to draw from."""

    def result(self) -> StepResult:
        """Raises the error, with the traceback of the launch."""
        raise self.error


def _num_tensors(inputs: DrawInputs) -> int:
    return 6 if inputs.logprob_rows else 2
