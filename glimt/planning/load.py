"""A layout under load: pace, waiting and throughput from step and prompt times.

Copies that share experts step together and count as one here, a group, with the requests of all
spread evenly over them: the prompts of one are steps of all.

Steps with prompts take the share `busy` of a copy's time (`prompts.py`). Of n answers that run
beside them, each gets a token in each of these steps and in each decode step between:

    t(n) = 1 / ((1 - busy) / step(n) + steps with prompts per second)    seconds per token

An answer begins when such a step ends, so at first it sits among those that follow without a pause;
what that adds is spread over its tokens. The copy is a shared processor: n runs with the chance
p(n) ~ product of r x output x t(k) / k over k up to n, and by Little's law TPOT = mean n / (r x
output).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from glimt.planning.layout import Layout
from glimt.planning.prompts import MOST_AT_ONCE, PromptQueue
from glimt.planning.speed import Speed

_RATE_ERROR = 1e-4


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


def gpu_prompt_s(speed: Speed, work: Workload, together: int = 1) -> float:
    """Device time of a prompt, or of several in one step of a group: tower, then decoder."""
    here = -(-together // speed.layout.sharing)
    tower_s = speed.image_s(work.image_tokens, here * work.num_images)
    return tower_s + speed.prompt_s(work.prompt_tokens, work.chunk, here, together - here)


def group_step_s(speed: Speed, work: Workload, batch: float) -> float:
    """A decode step of a group with so many requests; the fullest copy has its part, or one."""
    here = max(min(batch, 1.0), batch / speed.layout.sharing)
    return speed.step_s(here, work.mean_context, batch - here)


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
    return group_step_s(speed, work, 1)


@dataclass(frozen=True)
class _Pace:
    """How fast answers grow in a copy, beside the prompts of `queue`. `step_s` of a batch."""

    queue: PromptQueue
    chunks: int  # steps of one prompt; more than one where it does not fit a step
    output_tokens: int
    step_s: Callable[[float], float]

    def inflow(self, batch: int) -> float:
        """Answers that would run if all went at the pace of `batch` running ones, over `batch`:
        below 1 they become fewer."""
        return self.queue.rate * self.output_tokens * self._token_s(batch) / batch

    def mean_running(self, max_running: int) -> float:
        """Answers that run at once, on average, at most `max_running`."""
        logs = [0.0]
        for batch in range(1, max_running + 1):
            logs.append(logs[-1] + math.log(self.inflow(batch)))
        highest = max(logs)
        weights = [math.exp(log - highest) for log in logs]
        return sum(batch * weight for batch, weight in enumerate(weights)) / sum(weights)

    def _token_s(self, batch: int) -> float:
        """Seconds per token of each of `batch` answers."""
        decode_steps_per_s = (1 - self._busy) / self.step_s(batch)
        steady_s = 1 / (decode_steps_per_s + self._prompt_steps_per_s)
        # How many steps an answer begins among varies so widely that its end cuts the mean short.
        count, time_s = self._behind
        share = count / (count + self.output_tokens)
        return steady_s + share * max(0.0, time_s / max(count, 1e-9) - steady_s)

    @cached_property
    def _busy(self) -> float:
        return self.queue.busy

    @cached_property
    def _prompt_steps_per_s(self) -> float:
        return self.chunks / self.queue.cycle_s

    @cached_property
    def _behind(self) -> tuple[float, float]:
        count, time_s = self.queue.steps_behind
        return self.chunks * count, time_s


def most_at_once(layout: Layout, work: Workload) -> int:
    """Prompts that a step of a group computes at most; each copy as many as fit its step."""
    each = max(1, min(MOST_AT_ONCE, work.chunk // work.prompt_tokens))
    copies = layout.sharing
    return min(each * copies, max(MOST_AT_ONCE, 2 * copies if copies <= MOST_AT_ONCE else copies))


def _pace(speed: Speed, work: Workload, rate: float) -> _Pace:
    most = most_at_once(speed.layout, work)
    return _Pace(
        queue=PromptQueue(
            rate / speed.layout.num_groups,
            tuple(gpu_prompt_s(speed, work, together) for together in range(1, most + 1)),
        ),
        chunks=-(-work.prompt_tokens // work.chunk),
        output_tokens=work.output_tokens,
        step_s=lambda batch: group_step_s(speed, work, batch),
    )


def carries(speed: Speed, work: Workload, rate: float, max_running: int) -> bool:
    """Whether queues stay finite under `rate` requests/s, `max_running` at once in each copy."""
    return _is_carried(speed, _pace(speed, work, rate), max_running * speed.layout.sharing)


def _is_carried(speed: Speed, pace: _Pace, max_running: int) -> bool:
    is_light = pace.queue.load <= speed.constants.engine.most_busy
    return is_light and pace.inflow(max_running) <= 1


def ends_by_prompts(speed: Speed, work: Workload, highest: float) -> bool:
    """Whether, above the highest rate, prompts take too much of the time; else more requests than
    may run at once would run."""
    return _pace(speed, work, 1.02 * highest).queue.load > speed.constants.engine.most_busy


def under(speed: Speed, work: Workload, rate: float, max_running: int) -> Under:
    """All copies together under `rate` requests/s; each runs at most `max_running` at once."""
    pace, max_running = _pace(speed, work, rate), max_running * speed.layout.sharing
    if not _is_carried(speed, pace, max_running):
        endless = float("inf")
        return Under(
            rate=rate,
            carried=False,
            ttft_s=endless,
            tpot_s=endless,
            running=float(max_running * speed.layout.num_groups),
            busy=min(1.0, pace.queue.load),
            output_rate=rate * work.output_tokens,
        )
    queue, running = pace.queue, pace.mean_running(max_running)
    under_way_s = (1 - queue.busy) * min(1.0, running) * pace.step_s(max(1.0, running)) / 2
    return Under(
        rate=rate,
        carried=True,
        ttft_s=host_s(speed, work) + under_way_s + queue.waiting_s + queue.own_step_s,
        tpot_s=running / (queue.rate * work.output_tokens),
        running=running * speed.layout.num_groups,
        busy=queue.busy,
        output_rate=rate * work.output_tokens,
    )


def highest_rate(speed: Speed, work: Workload, max_running: int) -> float:
    """Most requests/s that are carried, to a ten-thousandth; 0 if none."""
    if max_running < 1:
        return 0.0
    most, engine = most_at_once(speed.layout, work), speed.constants.engine
    seconds = gpu_prompt_s(speed, work, most)
    busiest = speed.layout.num_groups * most * engine.most_busy / seconds * (1 - _RATE_ERROR)

    def excess(rate: float) -> float:
        return _pace(speed, work, rate).inflow(max_running * speed.layout.sharing) - 1

    above = excess(busiest)
    return busiest if above <= 0 else _last_below_zero(excess, busiest, above)


def _last_below_zero(excess: Callable[[float], float], high: float, above: float) -> float:
    """Where a function that grows from -1 at 0 to `above` at `high` is hardly below 0: false
    position, the end that stays counting half each time (the Illinois algorithm)."""
    low, below, side = 0.0, -1.0, 0
    while high - low > _RATE_ERROR * high:
        rate = high - above * (high - low) / (above - below)
        found = excess(rate)
        if found > 0:
            below /= 2 if side > 0 else 1
            high, above, side = rate, found, 1
        elif found > -_RATE_ERROR:
            return rate
        else:
            above /= 2 if side < 0 else 1
            low, below, side = rate, found, -1
    return low
