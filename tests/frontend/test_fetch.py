"""What may be fetched and what may not, against servers on loopback that count connections."""

import asyncio
import ipaddress
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from glimt.errors import BadMedia, MediaBlocked, MediaFetchFailed, RequestError
from glimt.frontend.fetch import FetchPolicy, MediaFetcher, Payload
from glimt.frontend.prompt import MediaSource
from glimt.wire import MediaLimits

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
BODY = b"\x89PNG and so on"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)

Answer = Callable[[str], bytes]


class Canary:
    """A server on loopback: gives `answer(path)` and counts who came."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.requests: list[bytes] = []
        self.num_connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head)
            writer.write(self._answer(head.split()[1].decode()))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def canary(answer: Answer = lambda path: OK) -> AsyncIterator[Canary]:
    seen = Canary(answer)
    server = await asyncio.start_server(seen.serve, "127.0.0.1", 0)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()


def policy(*ports: int, **settings: Any) -> FetchPolicy:
    return FetchPolicy(allowed_networks=LOOPBACK, allowed_ports=(80, 443, *ports), **settings)


async def to_loopback(name: str) -> list[str]:
    return ["127.0.0.1"]


async def fetch(
    url: str, how: FetchPolicy, resolve: Any = to_loopback, kind: str = "image"
) -> Payload:
    fetcher = MediaFetcher(how, resolve)
    try:
        return await fetcher.fetch(MediaSource(kind, url, "messages[0]"))
    finally:
        await fetcher.close()


async def refusal(url: str, how: FetchPolicy, resolve: Any = to_loopback) -> RequestError:
    with pytest.raises((MediaBlocked, MediaFetchFailed, BadMedia)) as refused:
        await fetch(url, how, resolve)
    assert refused.value.param == "messages[0]"
    return refused.value


# ------------------------------------------------------------------------------------ http


async def test_a_name_is_resolved_and_its_host_asked() -> None:
    async with canary() as server:
        payload = await fetch(f"http://ok.example:{server.port}/a.png?x=%20", policy(server.port))
        assert payload == Payload(BODY)
        head = server.requests[0].decode().lower()
        assert head.startswith("get /a.png?x=%20 http/1.1\r\n")
        assert f"host: ok.example:{server.port}\r\n" in head
        assert "accept-encoding: identity\r\n" in head
        assert "cookie" not in head
        assert "authorization" not in head


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:7f00:1::]",
        "[::]",
        "169.254.169.254",
        "100.100.100.200",
        "224.0.0.1",
        "255.255.255.255",
        "2130706433",
        "0x7f000001",
        "127.1",
        "0",
        "10.0.0.1",
    ],
)
async def test_private_hosts_are_blocked_without_a_connection(host: str) -> None:
    async with canary() as server:
        how = FetchPolicy(allowed_ports=(server.port,))
        assert isinstance(await refusal(f"http://{host}:{server.port}/", how), MediaBlocked)
        assert server.num_connections == 0


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["fe80::1%lo"], [], ["x"]],
)
async def test_a_name_with_a_private_address_is_not_asked(addresses: list[str]) -> None:
    async def resolve(name: str) -> list[str]:
        return addresses

    async with canary() as server:
        how = FetchPolicy(allowed_ports=(server.port,))
        error = await refusal(f"http://rebound.example:{server.port}/", how, resolve)
        assert isinstance(error, MediaFetchFailed)
        assert server.num_connections == 0


async def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    """A name server that changes its mind is asked once for each fetch."""
    asked: list[str] = []

    async def resolve(name: str) -> Sequence[str]:
        asked.append(name)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    async with canary() as server:
        assert await fetch(f"http://a.example:{server.port}/", policy(server.port), resolve)
    assert asked == ["a.example"]


@pytest.mark.parametrize("port", [22, 6379, 8000])
async def test_other_ports_are_blocked(port: int) -> None:
    assert isinstance(await refusal(f"http://8.8.8.8:{port}/", FetchPolicy()), MediaBlocked)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://ok.example/",
        "gopher://x/",
        "javascript:1",
        "//h/x",
        "",
        "/etc/passwd",
        "x.png",
        "~/x",
    ],
)
async def test_other_schemes_and_bare_paths_are_blocked(url: str) -> None:
    error = await refusal(url, FetchPolicy(local_root="/"))
    assert isinstance(error, MediaBlocked)
    assert "base64 is written behind data:image/png;base64, and a path" in error.message


async def test_a_list_of_domains_narrows() -> None:
    async with canary() as server:
        how = policy(server.port, allowed_domains=("Good.Example",))
        assert await fetch(f"http://good.example:{server.port}/", how)
        for host in ("bad.example", "good.example.evil.example", "x.good.example", "127.0.0.1"):
            assert isinstance(await refusal(f"http://{host}:{server.port}/", how), MediaBlocked)
        assert server.num_connections == 1


async def test_a_listed_domain_is_still_not_led_inside() -> None:
    async with canary() as server:
        how = FetchPolicy(allowed_domains=("in.example",), allowed_ports=(server.port,))
        await refusal(f"http://in.example:{server.port}/", how)
        assert server.num_connections == 0


def redirect(to: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


async def test_redirects_are_not_followed_by_default() -> None:
    async with canary(lambda path: redirect("/b") if path == "/a" else OK) as server:
        await refusal(f"http://ok.example:{server.port}/a", policy(server.port))
        assert server.num_connections == 1


async def test_redirects_are_followed_as_often_as_allowed() -> None:
    def answer(path: str) -> bytes:
        return OK if path == "/3" else redirect(f"/{int(path[1:]) + 1}")

    async with canary(answer) as server:
        url = f"http://ok.example:{server.port}/0"
        assert (await fetch(url, policy(server.port, max_redirects=3))).data == BODY
        await refusal(url, policy(server.port, max_redirects=2))


@pytest.mark.parametrize(
    "to",
    [
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://other.example/",
        "file:///etc/passwd",
        "ftp://ok.example/",
        "//10.0.0.1/",
        "http://ok.example@10.0.0.1/",
    ],
)
async def test_each_redirect_is_checked(to: str) -> None:
    async with canary(lambda path: redirect(to)) as server:
        how = policy(server.port, max_redirects=3, allowed_domains=("ok.example",))
        assert isinstance(await refusal(f"http://ok.example:{server.port}/", how), MediaBlocked)
        assert server.num_connections == 1


def status(line: str, headers: str = "") -> bytes:
    return f"HTTP/1.1 {line}\r\n{headers}Content-Length: 2\r\n\r\nno".encode()


async def test_every_useless_answer_reads_the_same() -> None:
    answers = {
        "/204": b"HTTP/1.1 204 No Content\r\n\r\n",
        "/206": status("206 Partial Content"),
        "/304": b"HTTP/1.1 304 Not Modified\r\n\r\n",
        "/404": status("404 Not Found"),
        "/500": status("500 Oops"),
        "/garbage": b"not http at all\r\n\r\n",
        "/nothing": b"",
        "/gzip": status("200 OK", "Content-Encoding: gzip\r\n"),
        "/short": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        "/chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "/header": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    }
    async with canary(answers.__getitem__) as server:
        errors = [
            await refusal(f"http://ok.example:{server.port}{path}", policy(server.port))
            for path in answers
        ]

    async def unknown(name: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    errors.append(await refusal("http://nx.example/", FetchPolicy(), unknown))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        errors.append(await refusal(f"http://127.0.0.1:{port}/", policy(port)))
    (told,) = {(type(error), error.message) for error in errors}
    assert told[0] is MediaFetchFailed
    assert told[1].startswith("the media could not be fetched")


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_beyond_the_limit_is_not_read(announced: bool) -> None:
    sent = 0

    class Endless(Canary):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await reader.readuntil(b"\r\n\r\n")
            length = b"Content-Length: 10737418240\r\n" if announced else b""
            writer.write(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n")
            try:
                while True:
                    writer.write(bytes(10_000))
                    await writer.drain()
                    sent += 10_000
            except ConnectionError:
                pass
            finally:
                writer.close()

    endless = Endless(lambda path: b"")
    server = await asyncio.start_server(endless.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    how = policy(port, limits=MediaLimits(max_image_bytes=50_000))
    error = await refusal(f"http://ok.example:{port}/", how)
    server.close()
    assert isinstance(error, BadMedia)
    assert "50,000" in error.message


async def test_the_whole_fetch_has_one_deadline() -> None:
    """One byte at a time never ends, nor does a server that says nothing."""
    release = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        try:
            if b"/drip" in head:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not release.is_set():
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.01)
            else:
                await release.wait()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def silent(name: str) -> list[str]:
        await release.wait()
        return []

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    how = policy(port, timeout_s=0.2)
    for path in ("drip", "mute"):
        assert isinstance(await refusal(f"http://127.0.0.1:{port}/{path}", how), MediaFetchFailed)
    assert isinstance(await refusal("http://mute.example/", how, silent), MediaFetchFailed)
    release.set()
    server.close()


async def test_a_client_that_leaves_closes_the_fetch() -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        assert await reader.read() == b""
        gone.set()
        writer.close()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    fetcher = MediaFetcher(policy(port))
    task = asyncio.ensure_future(
        fetcher.fetch(MediaSource("image", f"http://127.0.0.1:{port}/", "p"))
    )
    await arrived.wait()
    task.cancel()
    await asyncio.wait_for(gone.wait(), 5)
    with pytest.raises(asyncio.CancelledError):
        await task
    await fetcher.close()
    server.close()


async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with canary() as proxy, canary() as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        await fetch(f"http://ok.example:{server.port}/", policy(server.port))
        assert (proxy.num_connections, server.num_connections) == (0, 1)


async def test_fetches_at_once_are_bounded() -> None:
    at_once = most = 0
    go_on = asyncio.Event()

    async def resolve(name: str) -> list[str]:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await go_on.wait()
        at_once -= 1
        return []

    fetcher = MediaFetcher(FetchPolicy(max_parallel=2), resolve)
    sources = [MediaSource("image", f"http://a{i}.example/", "p") for i in range(5)]
    tasks = [asyncio.ensure_future(fetcher.fetch(source)) for source in sources]
    for _ in range(20):
        await asyncio.sleep(0)
    go_on.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, MediaFetchFailed) for result in results)
    assert most == 2
    await fetcher.close()


# ------------------------------------------------------------------------------------ data


async def test_data_urls_are_cut_and_not_decoded() -> None:
    payload = await fetch("data:image/png;base64,aGVsbG8=", FetchPolicy())
    assert payload.is_base64
    assert bytes(payload.data) == b"aGVsbG8="


async def test_large_data_urls_come_through_whole() -> None:
    text = "QUJD" * 600_000
    payload = await fetch("data:image/png;base64," + text, FetchPolicy())
    assert bytes(payload.data) == text.encode()


@pytest.mark.parametrize(
    ("url", "limit"),
    [
        ("data:image/png;base64," + "AAAA" * 100, 200),
        ("data:image/png;base64,\u00e9\u00e9\u00e9\u00e9", 200),
        ("data:text/html;base64,AAAA", 200),
        ("data:image/png;base64", 200),
    ],
)
async def test_bad_data_urls_are_bad_media(url: str, limit: int) -> None:
    how = FetchPolicy(limits=MediaLimits(max_image_bytes=limit))
    assert isinstance(await refusal(url, how), BadMedia)


# ------------------------------------------------------------------------------------ file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """pics/ is allowed; beside it lies what must not be read."""
    (tmp_path / "pics" / "in").mkdir(parents=True)
    (tmp_path / "pics-secret").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "pics-secret" / "s.png").write_bytes(b"secret")
    (tmp_path / "pics" / "in" / "a b.png").write_bytes(BODY)
    (tmp_path / "pics" / "empty.png").touch()
    (tmp_path / "pics" / "inside").symlink_to("in/a b.png")
    (tmp_path / "pics" / "absolute").symlink_to(tmp_path / "pics" / "in" / "a b.png")
    (tmp_path / "pics" / "outside").symlink_to("../secret.png")
    (tmp_path / "pics" / "out-folder").symlink_to("../pics-secret")
    (tmp_path / "pics" / "to-itself").symlink_to("to-itself")
    os.mkfifo(tmp_path / "pics" / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "pics" / "socket"))
    return tmp_path


@pytest.mark.parametrize("name", ["in/a%20b.png", "inside", "absolute"])
async def test_files_below_the_root_are_read(folder: Path, name: str) -> None:
    how = FetchPolicy(local_root=str(folder / "pics"))
    assert await fetch(f"file://{folder}/pics/{name}", how) == Payload(BODY)


async def test_a_root_that_is_a_link_is_its_target(folder: Path) -> None:
    (folder / "link").symlink_to("pics")
    how = FetchPolicy(local_root=str(folder / "link"))
    for name in ("pics", "link"):
        assert await fetch(f"file://{folder}/{name}/inside", how) == Payload(BODY)


async def test_the_whole_file_system_may_be_allowed(folder: Path) -> None:
    how = FetchPolicy(local_root="/")
    assert (await fetch(f"file://{folder}/secret.png", how)).data == b"secret"
    for device in ("/dev/zero", "/dev/tty", "/proc/self/environ", "/proc/self/mem", "/proc"):
        assert isinstance(await refusal(f"file://{device}", how), MediaBlocked)


async def test_forbidden_missing_and_odd_files_are_refused_alike(folder: Path) -> None:
    how = FetchPolicy(local_root=str(folder / "pics"))
    root = f"file://{folder}/pics"
    urls = [
        f"{root}/missing.png",
        f"{root}/outside",
        f"{root}/out-folder/s.png",
        f"{root}/to-itself",
        f"{root}/fifo",
        f"{root}/socket",
        f"{root}/in",
        f"{root}/in/",
        f"{root}/empty.png",
        f"{root}/",
        f"{root}",
        f"{root}/in/../in/a%20b.png",
        f"{root}/%2e%2e/secret.png",
        f"{root}/%252e%252e/secret.png",
        f"{root}/..%2fsecret.png",
        f"{root}/./inside",
        f"{root}//inside",
        f"{root}/inside?x",
        f"{root}/inside#x",
        f"{root}/inside%00",
        f"{root}/%ff%fe",
        f"{root}/inside\n",
        f"{root}-secret/s.png",
        f"file://{folder}/secret.png",
        f"file://localhost{folder}/pics/inside",
        f"file://host{folder}/pics/inside",
        f"file:/{folder}/pics/inside",
        f"file:{folder}/pics/inside",
        f"FILE://{folder}/pics/inside",
        f"file:////{folder}/pics/inside",
        "file:///proc/self/root" + str(folder / "secret.png"),
        "file:///etc/passwd",
        "file:///dev/zero",
        "file://" + "/a" * 5000,
    ]
    errors = [await refusal(url, how) for url in urls]
    assert {(type(error), error.message) for error in errors} == {
        (MediaBlocked, "media file not available")
    }


async def test_no_file_is_read_unless_a_folder_is_allowed(folder: Path) -> None:
    error = await refusal(f"file://{folder}/secret.png", FetchPolicy())
    assert isinstance(error, MediaBlocked)


async def test_a_file_beyond_the_limit_is_not_read(folder: Path) -> None:
    with (folder / "pics" / "sparse.png").open("wb") as file:
        file.truncate(1 << 40)
    how = FetchPolicy(
        local_root=str(folder / "pics"), limits=MediaLimits(max_image_bytes=len(BODY))
    )
    assert isinstance(await refusal(f"file://{folder}/pics/sparse.png", how), BadMedia)
    assert await fetch(f"file://{folder}/pics/inside", how) == Payload(BODY)


async def test_a_link_that_is_swapped_all_the_time_never_leads_outside(folder: Path) -> None:
    link, spare = folder / "pics" / "link", folder / "pics" / "spare"
    how = FetchPolicy(local_root=str(folder / "pics"))
    fetcher = MediaFetcher(how)
    source = MediaSource("image", f"file://{link}", "p")
    stop = asyncio.Event()

    def swap() -> None:
        for target in ("inside", "../secret.png") * 300:
            spare.symlink_to(target)
            spare.replace(link)
        loop.call_soon_threadsafe(stop.set)

    loop = asyncio.get_running_loop()
    swapping = loop.run_in_executor(None, swap)
    seen = set()
    while not stop.is_set():
        try:
            seen.add(bytes((await fetcher.fetch(source)).data))
        except MediaBlocked:
            seen.add(b"blocked")
    await swapping
    await fetcher.close()
    assert seen <= {BODY, b"blocked"}
