"""These run in processes of their own (`test_interpreted.py`): Triton decides at import."""

import os
from collections.abc import Iterator

import pytest

from tests.support.poison import poisoned_allocations

if os.environ.get("TRITON_INTERPRET") == "1":
    from tests.support.quick_interpreter import make_quick

    make_quick()
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned_allocations():
        yield
