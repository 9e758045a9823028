"""Settings of every test, and one server for all tests that leave it as they found it.

One torch thread, repeatable Hypothesis runs, no garbage collection of what was only imported.
"""

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.support.serving import Serving

torch.set_num_threads(1)
torch.manual_seed(0)
# Timing must not decide a test, and CI must not find on Tuesdays what it missed on Mondays.
settings.register_profile(
    "glimt",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    max_examples=50,
)
settings.load_profile("glimt")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background, a shell's child ignores Ctrl-C, and so would all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Most tests take milliseconds, but these start processes that take seconds to import torch: if
# they came last, one of the processes of pytest-xdist would be left with them alone.
FIRST = ("e2e", "kernels", "parallel", "chat")
TESTS = Path(__file__).parent


gc.disable()  # while modules are imported and tests are collected, nearly nothing is garbage


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _imports_are_hidden_from_collections() -> Iterator[None]:
    """Also after tests of what gives memory back, or each later full collection takes a second."""
    yield
    if not gc.get_freeze_count():
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        directory = item.path.relative_to(TESTS).parts[0]
        return FIRST.index(directory) if directory in FIRST else len(FIRST)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "moe")


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="session")
def serving(
    checkpoint: Path, media_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    flags = ["--allowed-local-media-path", str(media_folder), "--enable-auto-tool-choice"]
    flags += ["--tool-call-parser", "glm45", "--reasoning-parser", "glm45"]
    flags += ["--admin-key", "root"]
    with Serving(checkpoint, *flags, log=log) as serving:
        yield serving
