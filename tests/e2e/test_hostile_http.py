"""HTTP that nobody should speak: heads without end, lies about lengths, smuggling, odd clients."""

import http.client
import json
import select
import socket
import time
from typing import Any

import pytest

from tests.support.hostile import (
    CHAT,
    HANGS_S,
    Canary,
    ask,
    ask_raw,
    chat_body,
    connect,
    image_part,
)
from tests.support.hostile import with_parts as parts_body
from tests.support.serving import Serving

GOOD = json.dumps(chat_body()).encode()
POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)
GET = b"GET /v1/models HTTP/1.1\r\n"
END = b"Connection: close\r\n\r\n"
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"


@pytest.fixture(scope="module")
def canary(serving: Serving) -> Canary:
    return Canary(serving)


def length(number: int) -> bytes:
    return b"Content-Length: %d\r\n" % number


RAW: list[tuple[str, bytes, int]] = [
    ("a plain request", POST + length(len(GOOD)) + END + GOOD, 200),
    ("a chunked request", POST + b"Transfer-Encoding: chunked\r\n" + END + CHUNKED, 200),
    ("junk after a request", POST + length(len(GOOD)) + END + GOOD + b"\0junk", 200),
    ("host with a path", GET + b"Host: x/health?\r\n" + END, 400),
    ("host with a fragment", GET + b"Host: a#b\r\n" + END, 400),
    ("two hosts", GET + b"Host: a\r\nHost: b\r\n" + END, 400),
    ("empty host", GET + b"Host:\r\n" + END, 400),
    ("host with a space", GET + b"Host: a b\r\n" + END, 400),
    ("10 GiB announced", POST + b"Expect: 100-continue\r\n" + length(10 << 30) + b"\r\n", 413),
    ("20-digit length", POST + length(10**20) + b"\r\n", 400),
    ("negative length", POST + length(-5) + b"\r\n", 400),
    ("a length and chunks", POST + length(9) + b"Transfer-Encoding: chunked\r\n\r\n", 400),
    ("two lengths", POST + length(9) + length(8) + b"\r\n", 400),
    ("chunk of 2^68", POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 17 + b"\r\n", 400),
    ("compressed", POST + b"Content-Encoding: gzip\r\n" + length(9) + END + b"x" * 9, 415),
    ("compressed chunks", POST + b"Transfer-Encoding: gzip, chunked\r\n" + END + CHUNKED, 415),
    ("lines that end in LF", b"GET /v1/models HTTP/1.1\nHost: a\n\n", 400),
    ("folded header", GET + b"Host: a\r\nX: a\r\n b\r\n" + END, 400),
    ("20 MB header", GET + b"Host: a\r\nX: " + b"a" * 20_000_000, 431),
    ("100,000 headers", GET + b"Host: a\r\n" + b"X: a\r\n" * 100_000, 431),
    ("10 KB path", b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n" + END, 414),
    ("100 KB path", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n" + END, 414),
    ("lower-case method", b"get /v1/models HTTP/1.1\r\nHost: a\r\n" + END, 400),
    ("a proxy's request", b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n" + END, 400),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100, 400),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("zeros", b"\0" * 1_000_000, 400),
    ("bytes in the path", b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n" + END, 400),
]


@pytest.mark.parametrize(("data", "status"), [x[1:] for x in RAW], ids=[x[0] for x in RAW])
def test_raw_bytes_get_their_status_and_an_end(
    serving: Serving, canary: Canary, data: bytes, status: int
) -> None:
    answer = ask_raw(serving, data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Traceback" not in answer
    if status != 200:
        assert json.loads(body)["error"]["message"]
    canary.sings()


@pytest.mark.parametrize("is_split", [False, True])
def test_a_wish_to_upgrade_is_passed_over_and_the_request_answered(
    serving: Serving, is_split: bool
) -> None:
    head = POST + H2C + length(len(GOOD)) + b"\r\n"
    with connect(serving) as sock:
        for piece in (head, GOOD) if is_split else (head + GOOD,):
            sock.sendall(piece)
            time.sleep(0.05)
        assert next_status(sock) == 200
        sock.sendall(GET + b"Host: a\r\n\r\n")
        assert next_status(sock) == 200


def next_status(sock: socket.socket) -> int:
    """Of an answer that is read to its end, in however many pieces it comes."""
    with http.client.HTTPResponse(sock) as answer:
        answer.begin()
        answer.read()
        return answer.status


def test_a_stream_to_a_client_of_http_1_0_is_unchunked_and_ends_with_the_connection(
    serving: Serving,
) -> None:
    body = json.dumps(chat_body(stream=True)).encode()
    start = POST.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Connection: keep-alive\r\n"
    head, _, text = ask_raw(serving, start + length(len(body)) + b"\r\n" + body).partition(
        b"\r\n\r\n"
    )
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    *events, end = text.split(b"\n\n")
    assert all(event.startswith(b"data: ") for event in events)
    assert (events[-1], end) == (b"data: [DONE]", b"")


def test_pipelined_requests_are_all_answered(serving: Serving) -> None:
    one = POST + H2C + length(len(GOOD)) + b"\r\n" + GOOD
    answer = ask_raw(serving, one * 3 + GET + b"Host: a\r\n" + END)
    assert answer.count(b"HTTP/1.1 200 ") == 4


def test_heads_without_end_hold_neither_memory_nor_other_clients(
    serving: Serving, canary: Canary
) -> None:
    before = canary.memory_bytes()
    with connect(serving) as sock:
        sock.sendall(GET + b"Host: a\r\nX: ")
        for _ in range(200):
            sock.sendall(b"a" * 1_000_000)
        assert sock.recv(4096).startswith(b"HTTP/1.1 431 ")
    canary.sings()
    assert canary.memory_bytes() - before < 100 * 2**20


@pytest.mark.slow
def test_a_head_that_drips_is_given_up(serving: Serving, canary: Canary) -> None:
    sockets = [connect(serving, 30) for _ in range(50)]
    started = time.monotonic()
    for sock in sockets:
        sock.sendall(GET)
    while not select.select(sockets, [], [], 0.5)[0]:
        for sock in sockets:
            sock.sendall(b"X: ")
        canary.sings()
        assert time.monotonic() - started < HANGS_S
    for sock in sockets:
        assert sock.recv(4096).startswith(b"HTTP/1.1 408 ")
        sock.close()


def test_a_client_that_sends_too_much_reads_why(serving: Serving, canary: Canary) -> None:
    body = parts_body(image_part("data:image/png;base64," + "A" * (70 * 2**20)))
    reply = ask(serving, body)
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    with connect(serving) as sock:
        sock.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(80):
            sock.sendall(b"100000\r\n" + b" " * 2**20 + b"\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 413 ")
    canary.sings()


def test_the_largest_body_is_read_and_judged(serving: Serving) -> None:
    empty = json.dumps(parts_body(image_part("data:image/png;base64,")))
    padding = "A" * (64 * 2**20 - len(empty))
    reply = ask(serving, parts_body(image_part("data:image/png;base64," + padding)))
    assert (reply.status, reply.error["code"]) == (400, "image_parse_error")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("text/plain", 415),
        ("", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/json; charset=utf-16", 415),
        ("application/json; charset=utf-8", 200),
    ],
)
def test_bodies_are_json(serving: Serving, kind: str, status: int) -> None:
    assert ask(serving, chat_body(), headers={"Content-Type": kind}).status == status


@pytest.mark.parametrize(
    "label", ["a" * 128, "a" * 1000, "1.2.3.4:9", "../../x", "x y", "\xff"], ids=range(6)
)
def test_ids_are_ours_whatever_the_client_calls_its_request(serving: Serving, label: str) -> None:
    headers: dict[str, Any] = {"X-Request-Id": label.encode("latin-1")}
    replies = [ask(serving, chat_body(), headers=headers) for _ in range(2)]
    assert len({reply.json["id"] for reply in replies}) == 2
    assert not any(label in reply.json["id"] for reply in replies)


CONTROL = "collective_rpc flush_cache update_weights abort_requests"
CONTROL += " scale_elastic_ep v1/load_lora_adapter"


def test_there_are_no_control_routes_but_the_operators(serving: Serving) -> None:
    for path in CONTROL.split():
        assert ask(serving, method="GET", path=f"/{path}").status == 404
        assert ask(serving, {}, path=f"/{path}").status == 404
    for path in ("pause", "resume", "reset_prefix_cache", "sleep", "wake_up", "start_profile"):
        assert ask(serving, {}, path=f"/{path}").status == 401


def test_wrong_methods_name_the_right_ones(serving: Serving) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE"):
        reply = ask(serving, method=method, path=CHAT)
        assert (reply.status, reply.headers["allow"]) == (405, "POST")


def test_nothing_that_was_said_shows_how_the_server_is_made(serving: Serving) -> None:
    log = serving.log.read_text()
    assert "Traceback" not in log
    assert "internal_error" not in log
