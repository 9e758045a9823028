"""These run in processes of their own (`test_interpreted.py`): Triton decides at import."""

import os
from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.poison import poisoned_allocations

if os.environ.get("TRITON_INTERPRET") == "1":
    from tests.support.quick_interpreter import make_quick

    make_quick()
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    # Of zero, a GPU's logarithm is -inf without a word; NumPy, which interprets, would warn.
    with poisoned_allocations(), np.errstate(divide="ignore"):
        yield
