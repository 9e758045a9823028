"""What the GPUs used during a run."""

from dataclasses import dataclass

import numpy as np

from glimt.bench.events import EventLog, PowerEvent


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Of all GPUs together, over the measured part of the run."""

    joules: float
    mean_watts: float
    mean_utilisation: float | None  # 0 to 1, mean over GPUs; None: they do not tell
    joules_per_token: float | None  # of generated tokens


def energy(log: EventLog, num_tokens: int) -> Energy | None:
    """From the GPUs' energy counters, or (without them) the integral of their power.

    Samples do not fall on the run's ends: the mean power between the first and the last of them is
    taken for the whole run. None without two samples.
    """
    samples = [event for event in log.power if 0 <= event.at_ns <= log.end.end_ns]
    if len(samples) < 2 or samples[-1].at_ns == samples[0].at_ns:
        return None
    seconds = (samples[-1].at_ns - samples[0].at_ns) / 1e9
    watts = _used_joules(samples) / seconds
    joules = watts * log.end.end_ns / 1e9
    uses = [np.mean(each.utilisation) for each in samples if each.utilisation]
    return Energy(
        joules=joules,
        mean_watts=watts,
        mean_utilisation=float(np.mean(uses)) if uses else None,
        joules_per_token=joules / num_tokens if num_tokens else None,
    )


def _used_joules(samples: list[PowerEvent]) -> float:
    """Between the first and the last sample."""
    first, last = samples[0], samples[-1]
    if first.joules is not None and last.joules is not None:
        return sum(last.joules) - sum(first.joules)
    at_s = np.array([event.at_ns / 1e9 for event in samples])
    watts = np.array([sum(event.watts) for event in samples])
    return float(((watts[1:] + watts[:-1]) / 2) @ np.diff(at_s))
