"""How many servers a Ray Serve application needs: a function that Ray calls, of what they report.

It is sent to Ray's controller by value, so it stands alone.
"""

import math
from typing import Any

# A server that is in use by more than this share counts as more than one: what comes next waits.
FULL = 0.8


def work_of(queued_tokens: int, usage: float, target_tokens: int) -> float:
    """What one server has to do, in servers: `usage` is the share of it that is in use (0 to 1),
    `target_tokens` the prompt tokens that may wait at one.
    """
    return usage / FULL + queued_tokens / target_tokens


def wanted_servers(context: Any) -> tuple[int, dict[str, Any]]:
    """Ray Serve's `AutoscalingContext` -> how many servers, and a state that is not used.

    Delays and bounds are Ray's: `upscale_delay_s`, `downscale_delay_s`, `min_replicas`,
    `max_replicas`.
    """
    reports = (context.aggregated_metrics or {}).get("work", {})
    if not reports:  # nobody has said anything yet
        return int(context.target_num_replicas), {}
    return max(1, math.ceil(sum(reports.values()) - 1e-9)), {}
