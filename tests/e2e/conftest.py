"""One server for all tests of a module that do not break it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.support.serving import Serving


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "moe")


@pytest.fixture(scope="module")
def media_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def serving(
    checkpoint: Path, media_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    flags = ["--allowed-local-media-path", str(media_folder), "--enable-auto-tool-choice"]
    flags += ["--tool-call-parser", "glm45", "--reasoning-parser", "glm45"]
    flags += ["--admin-key", "root"]
    with Serving(checkpoint, *flags, log=log) as serving:
        yield serving


@pytest.fixture
def client(serving: Serving) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as client:
        yield client
