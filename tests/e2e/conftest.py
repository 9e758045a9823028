"""OpenAI's client of the server."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.serving import Serving


@pytest.fixture(scope="session")
def client(serving: Serving) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as client:
        yield client
