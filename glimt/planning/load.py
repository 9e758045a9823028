"""A layout under load: pace, waiting and throughput from step and prompt times.

A copy that gets r requests a second spends the share busy = r x prompt time on prompts. Of n
answers that run beside them, each gets a token in each prompt's step and one in each decode step:

    t(n) = 1 / ((1 - busy) / step(n) + prompts per second)      seconds per token, in the long run

An answer begins when a prompt ends, so at first it waits for the prompts that came meanwhile, and
for those that come while it waits: for q / (1 - busy) prompts, q = busy + busy^2 / (2 (1 - busy)).
What that adds is spread over its tokens. The copy is a shared processor: n runs with the chance
p(n) ~ product of r x output x t(k) / k over k up to n, and by Little's law TPOT = mean n / (r x
output). A prompt waits as in a queue with random arrivals and equal service (M/D/1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from glimt.planning.speed import Speed

_HALVINGS = 40
_MOST_BUSY = 0.999  # beyond it nothing is carried, and nothing divides by zero


@dataclass(frozen=True, slots=True)
class Workload:
    """Typical request: text tokens, images and their tokens, answer tokens; tokens per step."""

    input_tokens: int
    output_tokens: int
    num_images: int
    image_tokens: int
    chunk: int

    @property
    def prompt_tokens(self) -> int:
        """Text and images together."""
        return self.input_tokens + self.num_images * self.image_tokens

    @property
    def request_tokens(self) -> int:
        """Prompt and answer."""
        return self.prompt_tokens + self.output_tokens

    @property
    def mean_context(self) -> float:
        """Tokens of a running request, over its life."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclass(frozen=True, slots=True)
class Under:
    """A layout under a rate. `running`: requests at once, of all copies; `busy`: share of a copy's
    time that prompts take. Not `carried`: queues would grow for ever."""

    rate: float
    carried: bool
    ttft_s: float
    tpot_s: float
    running: float
    busy: float
    output_rate: float  # tokens/s of all answers


def gpu_prompt_s(speed: Speed, work: Workload) -> float:
    """Device time of a prompt: tower, then decoder."""
    tower_s = speed.image_s(work.image_tokens, work.num_images)
    return tower_s + speed.prompt_s(work.prompt_tokens, work.chunk)


def host_s(speed: Speed, work: Workload) -> float:
    """Host time before a prompt can start; the images of a request are prepared side by side."""
    engine = speed.constants.engine
    return engine.request_host_s + (engine.image_host_s if work.num_images else 0.0)


def alone_ttft_s(speed: Speed, work: Workload) -> float:
    """Time to first token when nothing else runs."""
    device_s = gpu_prompt_s(speed, work)
    return device_s if speed.floor else device_s + host_s(speed, work)


def alone_tpot_s(speed: Speed, work: Workload) -> float:
    """Time per further token when nothing else runs."""
    return speed.step_s(1, work.mean_context)


@dataclass(frozen=True, slots=True)
class _Pace:
    """How fast answers grow in a copy under a rate; `prompt_s` and `step_s` of batches given."""

    per_copy: float  # requests/s
    prompt_s: float
    busy: float  # share of a copy's time that prompts take
    prompts_per_s: float  # steps with a prompt in them
    step_s: Callable[[float], float]
    output_tokens: int

    def token_s(self, batch: int) -> float:
        """Seconds per token of each of `batch` answers."""
        steady_s = 1 / ((1 - self.busy) / self.step_s(batch) + self.prompts_per_s)
        return steady_s + self._first_share * max(0.0, self.prompt_s - steady_s)

    @property
    def _first_share(self) -> float:
        """Share of an answer's tokens that come in the prompts' steps it begins among. How many
        these are varies so widely that their mean is cut short by the answer's end."""
        queued = self.busy + self.busy**2 / (2 * (1 - self.busy))
        first = queued / (1 - self.busy)
        return first / (first + self.output_tokens)

    def inflow(self, batch: int) -> float:
        """Answers that would run if all went at the pace of `batch` running ones, over `batch`:
        below 1 they become fewer."""
        return self.per_copy * self.output_tokens * self.token_s(batch) / batch

    def mean_running(self, max_running: int) -> float:
        """Answers that run at once, on average, at most `max_running`."""
        logs = [0.0]
        for batch in range(1, max_running + 1):
            logs.append(logs[-1] + math.log(self.inflow(batch)))
        highest = max(logs)
        weights = [math.exp(log - highest) for log in logs]
        return sum(batch * weight for batch, weight in enumerate(weights)) / sum(weights)


def _pace(speed: Speed, work: Workload, rate: float) -> _Pace:
    per_copy, prompt_s = rate / speed.layout.dp, gpu_prompt_s(speed, work)
    busy = min(_MOST_BUSY, per_copy * prompt_s)
    return _Pace(
        per_copy=per_copy,
        prompt_s=prompt_s,
        busy=busy,
        prompts_per_s=busy / prompt_s * -(-work.prompt_tokens // work.chunk),
        step_s=lambda batch: speed.step_s(batch, work.mean_context),
        output_tokens=work.output_tokens,
    )


def carries(speed: Speed, work: Workload, rate: float, max_running: int) -> bool:
    """Whether queues stay finite under `rate` requests/s."""
    return _is_carried(speed, _pace(speed, work, rate), max_running)


def _is_carried(speed: Speed, pace: _Pace, max_running: int) -> bool:
    return pace.busy <= speed.constants.engine.most_busy and pace.inflow(max_running) <= 1


def under(speed: Speed, work: Workload, rate: float, max_running: int) -> Under:
    """All copies together under `rate` requests/s; each runs at most `max_running` at once."""
    pace = _pace(speed, work, rate)
    if not _is_carried(speed, pace, max_running):
        endless = float("inf")
        return Under(
            rate=rate,
            carried=False,
            ttft_s=endless,
            tpot_s=endless,
            running=float(max_running * speed.layout.dp),
            busy=pace.busy,
            output_rate=rate * work.output_tokens,
        )
    running = pace.mean_running(max_running)
    waiting_s = pace.busy * pace.prompt_s / (2 * (1 - pace.busy))
    under_way_s = min(1.0, running) * pace.step_s(max(1.0, running)) / 2
    return Under(
        rate=rate,
        carried=True,
        ttft_s=host_s(speed, work) + under_way_s + waiting_s + pace.prompt_s,
        tpot_s=running / (pace.per_copy * work.output_tokens),
        running=running * speed.layout.dp,
        busy=pace.busy,
        output_rate=rate * work.output_tokens,
    )


def highest_rate(speed: Speed, work: Workload, max_running: int) -> float:
    """Most requests/s that are carried; 0 if none."""
    if max_running < 1:
        return 0.0
    low = 0.0
    high = speed.layout.dp / gpu_prompt_s(speed, work)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if carries(speed, work, middle, max_running):
            low = middle
        else:
            high = middle
    return low
