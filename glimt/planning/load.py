"""A layout under load: pace, waiting and throughput from step and prompt times.

A copy that gets r requests a second spends the share r x prompt time on prompts; answers that run
beside them get one token in each prompt's step and one in each decode step between. So

    TPOT(B) = 1 / ((1 - busy) / step(1 + B) + prompts per second),   B = r x output x TPOT(B)

(Little's law; an answer sees B others beside itself), and a prompt waits as in a queue with random
arrivals and equal service (M/D/1).
"""

from collections.abc import Callable
from dataclasses import dataclass

from glimt.planning.speed import Speed

_HALVINGS = 40


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

    def tpot_s(self, batch: float) -> float:
        """With `batch` answers running on average: each sees so many others, and itself."""
        decode_steps_per_s = max(0.0, 1 - self.busy) / self.step_s(1 + batch)
        return 1 / max(1e-12, decode_steps_per_s + self.prompts_per_s)

    def excess(self, batch: float) -> float:
        """By how many more would run, at this pace, than `batch`."""
        return self.per_copy * self.output_tokens * self.tpot_s(batch) - batch


def _pace(speed: Speed, work: Workload, rate: float) -> _Pace:
    per_copy, prompt_s = rate / speed.layout.dp, gpu_prompt_s(speed, work)
    busy = min(1.0, per_copy * prompt_s)
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
    return pace.busy <= speed.constants.engine.most_busy and pace.excess(max_running) <= 0


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
    running = _smallest_root(pace.excess, float(max_running))
    waiting_s = pace.busy * pace.prompt_s / (2 * (1 - pace.busy))
    under_way_s = min(1.0, running) * pace.step_s(max(1.0, running)) / 2
    return Under(
        rate=rate,
        carried=True,
        ttft_s=host_s(speed, work) + under_way_s + waiting_s + pace.prompt_s,
        tpot_s=pace.tpot_s(running),
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


def _smallest_root(excess: Callable[[float], float], high: float) -> float:
    """Where `excess` first falls to 0 between 0 and `high`, at which it is not above 0."""
    end = min(1.0, high)
    while excess(end) > 0 and end < high:
        end = min(2 * end, high)
    low = 0.0 if end <= 1 else end / 2
    for _ in range(_HALVINGS):
        middle = (low + end) / 2
        low, end = (middle, end) if excess(middle) > 0 else (low, middle)
    return end
