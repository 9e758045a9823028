"""The HTTP client: connections that are reused, close, or lie; TLS; addresses."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from glimt.bench.load.http import Address, Exchange, HttpClient
from glimt.errors import BadSettings

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Head and body of one request; b"" at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
    return head + await reader.readexactly(length)


def closing(talk: Talk) -> Talk:
    """The same, with its connection closed at the end, whatever happens."""

    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
            await read_request(reader)
        except ConnectionError:
            pass
        finally:
            writer.close()

    return whole


def exchanges(talk: Talk, count: int, *, pause_s: float = 0.0, **client: object) -> list[Exchange]:
    """Send `count` requests one after the other to a server that talks like this."""

    async def run() -> list[Exchange]:
        server = await asyncio.start_server(closing(talk), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        http = HttpClient(Address.of(f"http://127.0.0.1:{port}/api"), **client)  # type: ignore[arg-type]
        head = http.head("POST", "/x", {"A": "b"})
        made = []
        for _ in range(count):
            made.append(await http.send(head, b"body"))
            await asyncio.sleep(pause_s)
        http.close()
        server.close()
        await asyncio.sleep(0.05)
        return made

    return uvloop.run(run())


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        writer.close()

    made = exchanges(talk, 2)
    assert [exchange.body() for exchange in made] == [b"all of it"] * 2
    assert all(exchange.failure is None for exchange in made)
    assert all(exchange.connected_ns is not None for exchange in made)


def test_an_answer_shorter_than_its_length_is_broken() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort")
        writer.close()

    (exchange,) = exchanges(talk, 1)
    assert exchange.failure == "broken"
    assert "after the headers" in exchange.error


def test_what_is_not_http_is_broken() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"SSH-2.0-OpenSSH\r\n")
        await writer.drain()

    (exchange,) = exchanges(talk, 1)
    assert exchange.failure == "broken"
    assert "not HTTP" in exchange.error


def test_a_request_on_a_connection_that_just_closed_is_sent_again() -> None:
    """The server answers once, keeps the connection open, and closes it at the next request."""
    seen: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        seen.append(1)
        writer.write(OK)
        await read_request(reader)
        writer.close()

    made = exchanges(talk, 3)
    assert [exchange.body() for exchange in made] == [b"ok"] * 3
    assert all(exchange.failure is None for exchange in made)
    assert len(seen) == 3


def test_a_connection_closed_while_idle_is_not_used() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await writer.drain()
        writer.close()

    made = exchanges(talk, 2, pause_s=0.05)
    assert all(exchange.failure is None for exchange in made)


def test_connection_close_is_obeyed_and_keep_alive_used() -> None:
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await read_request(reader):
            heads.append(request)
            last = len(heads) == 2
            writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") if last else OK)
            if last:
                break
        writer.close()

    made = exchanges(talk, 3)
    assert [exchange.connected_ns is None for exchange in made] == [False, True, False]
    assert heads[0].startswith(b"POST /api/x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nA: b\r\nContent-Length: 4\r\n\r\nbody" in heads[0]


def test_the_time_of_the_last_byte_sent_is_when_the_reader_took_it() -> None:
    async def run() -> Exchange:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.2)
            await read_request(reader)
            writer.write(OK)

        server = await asyncio.start_server(closing(talk), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = HttpClient(Address.of(f"http://127.0.0.1:{port}"))
        # More than the kernel's buffers on both sides hold.
        exchange = await client.send(client.head("POST", "/", {}), bytes(30_000_000))
        client.close()
        server.close()
        await asyncio.sleep(0.05)
        return exchange

    exchange = uvloop.run(run())
    assert exchange.sent_ns is not None
    assert exchange.headers_ns is not None
    assert exchange.sent_ns - exchange.start_ns > 100e6
    assert exchange.sent_ns <= exchange.headers_ns


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


@pytest.mark.parametrize(("verify", "failure"), [(True, "connect"), (False, None)])
def test_certificates_are_checked_unless_told_otherwise(
    certificate: ssl.SSLContext, verify: bool, failure: str | None
) -> None:
    async def run() -> Exchange:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(OK)

        server = await asyncio.start_server(closing(talk), "127.0.0.1", 0, ssl=certificate)
        port = server.sockets[0].getsockname()[1]
        client = HttpClient(Address.of(f"https://127.0.0.1:{port}"), verify=verify)
        exchange = await client.get("/")
        client.close()
        server.close()
        await asyncio.sleep(0.05)
        return exchange

    exchange = uvloop.run(run())
    assert exchange.failure == failure
    if failure is not None:
        assert "certificate" in exchange.error.lower()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h", Address("h", 80, False, "")),
        ("h:8", Address("h", 8, False, "")),
        ("https://h/v/", Address("h", 443, True, "/v")),
        ("http://[::1]:8", Address("::1", 8, False, "")),
    ],
)
def test_addresses_are_taken_apart(url: str, expected: Address) -> None:
    assert Address.of(url) == expected


def test_an_ipv6_host_is_bracketed() -> None:
    assert Address.of("http://[::1]:8").authority == "[::1]:8"
    with pytest.raises(BadSettings, match="--base-url"):
        Address.of("http://h:port")
