"""The task file that models are measured with."""

from pathlib import Path

import pytest

from tests.evaluation.support import write_tasks


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))
