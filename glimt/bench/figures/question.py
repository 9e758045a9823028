"""How a run is to be evaluated: what can be asked of its event log."""

from dataclasses import dataclass

from glimt.bench.figures.objectives import Objective

METRICS = (
    *("ttft", "tpot", "itl", "e2el", "client_queue_time", "e2el_including_client_queue"),
    *("e2el_per_token", "ttfo", "ttst", "chunk_gap", "ttft_from_intended", "e2el_from_intended"),
    *("connect", "upload", "headers"),
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """How a log is to be evaluated."""

    percentiles: tuple[float, ...] = (99.0,)
    objectives: tuple[Objective, ...] = ()
    steady_ratio: float | None = 0.8
    vllm_compat: bool = False
    counts_texts: bool = False  # input tokens are those of the texts, not the server's
