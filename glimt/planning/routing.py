"""How many experts a step touches, and how unevenly they lie over GPUs: expected values."""

import math
from functools import lru_cache

_BITS = 256  # of one coefficient below; C(256, 128) has 252


def distinct_experts(num_tokens: float, num_experts: int, per_token: int) -> float:
    """Expected number of experts of a layer that `num_tokens` tokens touch, all equally likely.

    Trained routers favour some experts, so this is an upper bound for more than one token.
    """
    return num_experts * (1 - math.pow(1 - per_token / num_experts, num_tokens))


def fullest_gpu(touched: float, num_experts: int, num_gpus: int) -> float:
    """Expected number of touched experts on the GPU that has most of them.

    The touched experts fall on the GPUs like cards on players; exact for whole numbers.
    """
    if num_gpus == 1:
        return touched
    if num_experts > _BITS:
        return touched / num_gpus  # so many that chance evens out
    low = math.floor(touched)
    share = touched - low
    below = _fullest(low, num_experts, num_gpus)
    if share == 0:
        return below
    return (1 - share) * below + share * _fullest(low + 1, num_experts, num_gpus)


@lru_cache(maxsize=4096)
def _fullest(touched: int, num_experts: int, num_gpus: int) -> float:
    """Sum over m of the chance that some GPU has more than m of the touched experts.

    No GPU has more than m in as many ways as the coefficient of x^touched in (sum of
    C(held, k) x^k for k up to m) ^ num_gpus says; x is a power of two, so one integer holds all
    coefficients.
    """
    held = num_experts // num_gpus
    ways = math.comb(num_experts, touched)
    expected, hands = 0.0, 0
    for most in range(min(held, touched) + 1):
        hands += math.comb(held, most) << (_BITS * most)
        within = (hands**num_gpus >> (_BITS * touched)) & ((1 << _BITS) - 1)
        expected += 1 - within / ways
    return expected
