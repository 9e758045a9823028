"""Clients that end their side of the connection when they have asked, and wait; or have left."""

import contextlib
import http.client
import json
import re
import socket
from typing import Any

import pytest

from tests.support.hostile import CHAT, Canary, ask, chat_body, connect
from tests.support.serving import Serving

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
END = b"Host: a\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def canary(serving: Serving) -> Canary:
    return Canary(serving)


def request(version: str = "1.1", **fields: Any) -> bytes:
    body = json.dumps(chat_body(ignore_eos=True, **fields)).encode()
    head = b"POST %s HTTP/%s\r\n" % (CHAT.encode(), version.encode())
    return head + END + b"Content-Length: %d\r\n\r\n" % len(body) + body


def get(path: str, version: str = "1.1") -> bytes:
    return b"GET %s HTTP/%s\r\n" % (path.encode(), version.encode()) + END + b"\r\n"


def ended(serving: Serving, *asked: bytes) -> bytes:
    """All that comes back to who sends this, then ends, and reads to the end."""
    with connect(serving) as sock:
        sock.sendall(b"".join(asked))
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def num_running(serving: Serving) -> int:
    return int(ask(serving, method="GET", path="/load").json["server_load"])


def test_who_ends_after_asking_is_answered(serving: Serving, canary: Canary) -> None:
    for version in ("1.1", "1.0"):
        for path in ("/health", "/v1/models"):
            assert ended(serving, get(path, version)).startswith(b"HTTP/1.1 200 ")
        answer = ended(serving, request(version, max_tokens=3)).removeprefix(INTERIM)
        assert answer.startswith(b"HTTP/1.1 200 ")
    answer = ended(serving, request(max_tokens=60, stream=True)).removeprefix(INTERIM)
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert b"HTTP/1.1 100" not in answer
    canary.sings()


def test_who_waits_long_is_told_to_go_on_waiting(serving: Serving) -> None:
    answer = ended(serving, request(max_tokens=100))
    interims = re.match(b"(HTTP/1.1 100 Continue\r\n\r\n)+", answer)
    assert interims is not None
    head, _, body = answer[interims.end() :].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body)["usage"]["completion_tokens"] == 100


def test_pythons_client_passes_the_interim_answers_over(serving: Serving) -> None:
    host, _, port = serving.url.removeprefix("http://").partition(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=60)) as client:
        body = json.dumps(chat_body(ignore_eos=True, max_tokens=100))
        client.request("POST", CHAT, body, {"Content-Type": "application/json"})
        client.sock.shutdown(socket.SHUT_WR)
        answer = client.getresponse()
        assert (answer.status, answer.read()[:1]) == (200, b"{")


def test_several_requests_before_the_end_are_all_answered(serving: Serving) -> None:
    answer = ended(serving, request(max_tokens=100), request(max_tokens=3), get("/v1/models"))
    assert answer.count(b"HTTP/1.1 200 ") == 3
    for piece in answer.split(b"HTTP/1.1 200 ")[1:-1]:
        assert b'"object":"chat.completion"' in piece.replace(INTERIM, b"")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_who_leaves_frees_its_place_also_where_nothing_is_sent_yet(
    serving: Serving, stream: bool, version: str
) -> None:
    with connect(serving) as sock:
        sock.sendall(request(version, max_tokens=2000, stream=stream))
        serving.wait_for(lambda: num_running(serving) == 1)
        sock.shutdown(socket.SHUT_WR)
    serving.wait_for(lambda: num_running(serving) == 0, 10)


def test_who_ends_within_a_request_is_let_go(serving: Serving, canary: Canary) -> None:
    whole = request(max_tokens=3)
    for size in (10, 60, len(whole) - 1):
        assert ended(serving, whole[:size]) == b""
    canary.sings()
