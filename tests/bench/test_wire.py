"""The kernel as a witness of what clients say of a server (benchmarks/agreement/wire.py)."""

import json
import os
import sys
import urllib.request
from collections.abc import Iterator

import pytest

from benchmarks.agreement.wire import Witness
from tests.support.mock_server import MockServer


@pytest.fixture
def mock() -> Iterator[MockServer]:
    server = MockServer("--ttft-ms", "30", "--gap-ms", "5")
    yield server
    server.stop()


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="needs root on Linux"
)
def test_the_witness_sees_when_requests_and_tokens_pass(mock: MockServer) -> None:
    body = {"messages": [{"role": "user", "content": "x" * 300_000}], "max_completion_tokens": 4}
    with Witness(int(mock.url.rsplit(":", 1)[1])) as witness:
        for _ in range(3):
            request = urllib.request.Request(
                f"{mock.url}/v1/chat/completions", json.dumps(body).encode()
            )
            with urllib.request.urlopen(request) as answer:
                assert b"[DONE]" in answer.read()
        with urllib.request.urlopen(f"{mock.url}/v1/models"):
            pass
    seen = witness.exchanges(b"/chat/completions")
    assert len(seen) == 3
    for one in seen:
        assert one.begun_s <= one.sent_s
        assert one.first_s - one.sent_s >= 0.029
        assert one.last_s > one.first_s  # how much later depends on how busy the machine is
