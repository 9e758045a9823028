"""HTTPS: a certificate that is checked at start, used, and renewed without a restart."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from glimt.config import ServerSettings, Settings
from glimt.config_check import check
from glimt.errors import BadSettings
from glimt.processes.connection import Connection
from glimt.processes.tls import TlsContext, TlsFiles


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one.pem, one.key, two.pem, two.key: self-signed, for 127.0.0.1."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    for name in ("one", "two"):
        files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
        command = [openssl, "req", "-x509", "-days", "2", *curve, *files, *names]
        subprocess.run(command, check=True, capture_output=True)
    return folder


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b"hello"})


@contextlib.asynccontextmanager
async def served(tls: TlsContext) -> Any:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=Connection,
        lifespan="off",
        log_config=None,
        ssl_context_factory=lambda config, make: tls.context,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()


async def ask(port: int, trusted: Path) -> tuple[bytes, str]:
    """The answer, and the name in the certificate."""
    context = ssl.create_default_context(cafile=str(trusted))
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    certificate = writer.get_extra_info("peercert")
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer, certificate["subject"][0][0][1]


async def test_a_certificate_is_used_and_renewed_when_its_files_change(
    certificates: Path, tmp_path: Path
) -> None:
    for kind in ("pem", "key"):
        shutil.copy(certificates / f"one.{kind}", tmp_path / f"now.{kind}")
    files = TlsFiles(certfile=str(tmp_path / "now.pem"), keyfile=str(tmp_path / "now.key"))
    tls = TlsContext(files)
    async with served(tls) as port:
        answer, name = await ask(port, certificates / "one.pem")
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"hello" in answer
        assert name == "one"
        assert not tls.refresh()
        (tmp_path / "now.key").write_bytes(b"half a fi")
        assert not tls.refresh(), "what cannot be read changes nothing"
        assert (await ask(port, certificates / "one.pem"))[1] == "one"
        for kind in ("pem", "key"):
            shutil.copy(certificates / f"two.{kind}", tmp_path / f"now.{kind}")
        assert tls.refresh()
        assert (await ask(port, certificates / "two.pem"))[1] == "two"


async def test_plain_http_on_the_port_of_https_is_closed(certificates: Path) -> None:
    one = certificates / "one"
    async with served(TlsContext(TlsFiles(certfile=f"{one}.pem", keyfile=f"{one}.key"))) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"200" not in await reader.read()
        writer.close()


async def test_clients_show_a_certificate_where_that_is_required(certificates: Path) -> None:
    one, two = certificates / "one", certificates / "two"
    files = TlsFiles(
        certfile=f"{one}.pem", keyfile=f"{one}.key", ca_certs=f"{two}.pem", cert_reqs=2
    )
    async with served(TlsContext(files)) as port:
        answer = b""
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            answer, _ = await ask(port, Path(f"{one}.pem"))
        assert answer == b""
        context = ssl.create_default_context(cafile=f"{one}.pem")
        context.load_cert_chain(f"{two}.pem", f"{two}.key")
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()


def test_files_that_do_not_belong_together_are_refused_at_start(certificates: Path) -> None:
    one, two = certificates / "one", certificates / "two"
    for certfile, keyfile, ciphers in (
        (f"{one}.pem", f"{two}.key", None),
        (f"{one}.pem", "/nowhere.key", None),
        ("/nowhere.pem", None, None),
        (f"{one}.pem", f"{one}.key", "NONSENSE"),
    ):
        with pytest.raises(BadSettings, match="--ssl-certfile"):
            TlsContext(TlsFiles(certfile=certfile, keyfile=keyfile, ciphers=ciphers))


def test_flags_that_need_each_other_say_so() -> None:
    for server, named in (
        (ServerSettings(ssl_keyfile="k"), "--ssl-certfile"),
        (ServerSettings(ssl_certfile="c", ssl_cert_reqs=2), "--ssl-ca-certs"),
        (ServerSettings(api_key=["a"], admin_key=["a"]), "--admin-key"),
        (ServerSettings(first_token_timeout=-1), "--first-token-timeout"),
        (ServerSettings(allowed_origins=['["*"]'], allow_credentials=True), "--allow-credentials"),
    ):
        with pytest.raises(BadSettings, match=named):
            check(Settings(model="m", server=server))
