"""What is said where Ray is not installed."""

import importlib
import importlib.util

import pytest

from glimt.config import ParallelSettings, ServerSettings, Settings
from glimt.errors import BadSettings
from glimt.processes.launch import serve

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is not None, reason="Ray is installed"
)


def test_the_flags_are_refused_with_the_cure() -> None:
    parallel = ParallelSettings(tensor_parallel_size=2, distributed_executor_backend="ray")
    free_port = ServerSettings(port=0)
    with pytest.raises(BadSettings, match=r"pip install 'glimt\[ray\]'"):
        serve(Settings(model="somewhere", parallel=parallel, server=free_port), print)


def test_the_ray_serve_application_names_the_cure() -> None:
    with pytest.raises(ImportError, match=r"pip install 'glimt\[ray\]'"):
        importlib.import_module("glimt.placement.serve_app")
