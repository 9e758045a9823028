"""How the tokens of a step reach the experts that other replicas have, and which way is taken."""

from collections.abc import Mapping
from dataclasses import dataclass

from glimt.experts.group import Backend

# By number of replicas: rows of the fullest from which dealing out was faster, as
# benchmarks/expert_exchange.py measures it. With two replicas and eight experts a token nearly all
# rows go everywhere anyway, and on two H200s dealing out was slower with 1 to 8192 rows. More
# replicas have not been measured, so all-gather is taken.
DEALS_FROM: Mapping[int, int] = {}


@dataclass(frozen=True, slots=True)
class Exchange:
    """How a step's tokens reach the experts of other replicas, the same for all of them.

    `num_rows`: of each replica, filled up to the most that any has; 0 = as many as there are.
    `deals`: each row goes only where it is needed (all-to-all), which makes the host wait for its
    numbers; else all rows go everywhere (all-gather, reduce-scatter).
    """

    num_rows: int = 0
    deals: bool = False


AS_THEY_ARE = Exchange()


def exchange_of(backend: Backend, num_replicas: int, num_rows: int, *, may_wait: bool) -> Exchange:
    """The way for a step; `may_wait`: no replica replays a CUDA graph of it."""
    threshold = DEALS_FROM.get(num_replicas)
    if backend == "alltoall":
        threshold = 1
    elif backend == "allgather_reducescatter":
        threshold = None
    return Exchange(num_rows, may_wait and threshold is not None and num_rows >= threshold)
