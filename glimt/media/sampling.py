"""Which frames of a video the model sees, and the text that tells it when they were.

Two generations, two rules; both are exactly `sample_frames` of transformers' video processors:

    glm4v    GLM-4.1V, GLM-4.5V         `fps` frames a second up to `max_duration_s`
    glm46v   GLM-4.6V, GLM-4.6V-Flash   6, 2 or 1 frames a second, by duration

A number of frames that is asked for takes the place of either; they are then spread evenly.
"""

import math
from collections.abc import Sequence

import numpy as np

from glimt.wire import ImageSettings

# glm46v: up to this many seconds, so many temporal steps (of two frames) a second.
_STEPS_PER_SECOND = ((30.0, 3.0), (300.0, 1.0), (2400.0, 0.5))


def sample(
    num_frames: int, fps: float, settings: ImageSettings, max_frames: int
) -> tuple[int, ...]:
    """Ascending frame indices, an even number, at least 2; only the last may occur twice.

    `num_frames` >= 1 is the video's, `fps` > 0 its rate; at most min(max_frames,
    settings.max_frames) indices come out.
    """
    # Readers give frames / rate as the duration; from a missing one HF derives another.
    duration_s = num_frames / fps
    cap = max(2, min(max_frames, settings.max_frames) // 2 * 2)
    if settings.num_frames:
        indices = _spread(0, num_frames - 1, min(settings.num_frames, num_frames))
    elif settings.sampler == "glm46v":
        indices = _by_duration(num_frames, fps, duration_s, settings.temporal_patch_size, cap)
    else:
        indices = _by_rate(num_frames, fps, duration_s, settings)
    unique = list(dict.fromkeys(indices))
    if not unique:  # clips of a few frames, for which the rule of glm46v wants none
        unique = sorted({0, num_frames - 1})
    if len(unique) > cap:
        unique = [unique[place] for place in _spread(0, len(unique) - 1, cap)]
    if len(unique) % 2:
        unique.append(unique[-1])
    return tuple(unique)


def timestamps(indices: Sequence[int], fps: float, sampler: str) -> tuple[str, ...]:
    """The text behind each temporal step: the time of its first frame.

    glm4v writes whole seconds, cut off ("1"), glm46v tenths ("0.4 seconds").
    """
    seconds = [index / fps for index in indices[::2]]
    if sampler == "glm46v":
        return tuple(f"{second:.1f} seconds" for second in seconds)
    return tuple(str(int(second)) for second in seconds)


def _by_rate(num_frames: int, fps: float, duration_s: float, settings: ImageSettings) -> list[int]:
    last = num_frames - 1
    if duration_s <= settings.max_duration_s:
        wanted = max(math.floor(duration_s * settings.fps), 1)
        return [min(last, math.ceil(i * fps / settings.fps)) for i in range(wanted)]
    wanted = int(settings.max_duration_s * settings.fps)
    if wanted >= num_frames:
        return list(range(num_frames))
    instants = np.linspace(0, duration_s, wanted)
    return [min(last, math.ceil(instant * fps)) for instant in instants.tolist()]


def _by_duration(
    num_frames: int, fps: float, duration_s: float, frames_per_step: int, cap: int
) -> list[int]:
    counted_s = min(duration_s, _STEPS_PER_SECOND[-1][0])
    steps_per_s = next(rate for limit_s, rate in _STEPS_PER_SECOND if counted_s <= limit_s)
    frames_per_s = steps_per_s * frames_per_step
    wanted = min(int(counted_s * frames_per_s), cap)
    if num_frames < wanted:
        return _spread(0, num_frames - 1, wanted)
    taken = _scan(num_frames, 1 / fps, 1 / frames_per_s, int(duration_s))
    if len(taken) < wanted:
        return _spread(taken[0], taken[-1], wanted)
    if len(taken) > wanted:
        return _spread(0, num_frames - 1, wanted)
    return taken


def _scan(num_frames: int, frame_s: float, interval_s: float, end_s: int) -> list[int]:
    """The first frame at or after each multiple of the interval, summed up as the original does
    (the rounding errors of the sum decide which frame it is)."""
    taken = []
    cursor_s = 0.0
    for index in range(num_frames):
        if index * frame_s >= cursor_s:
            cursor_s += interval_s
            taken.append(index)
            if cursor_s >= end_s:
                break
    return taken


def _spread(first: int, last: int, count: int) -> list[int]:
    """`count` indices evenly from first to last, cut off."""
    return [int(index) for index in np.linspace(first, last, count, dtype=int)]
