"""A vision tower so slow that images take many steps, and an engine small enough to show it."""

import pytest

from glimt.engine.limits import SchedulerLimits
from glimt.runner import tower_pass

LIMITS = SchedulerLimits(
    num_pages=64,
    page_size=4,
    max_num_seqs=8,
    max_num_batched_tokens=64,
    max_model_len=160,
    image_budget=48,
    image_cache_tokens=96,
)


@pytest.fixture
def block_behind_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of the tower is launched behind a step, however small the image."""
    monkeypatch.setattr(tower_pass, "_WORK", {"cpu": 1})
