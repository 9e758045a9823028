"""The one fetcher: every byte of media that a request names by URL comes through here.

`data:` always works. http and https reach public addresses only: names are resolved here, every
address is checked, and the connection goes to a checked one, so that a second answer of the name
server changes nothing. `file:` needs a folder that the operator allows.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from glimt.errors import BadMedia, MediaBlocked, MediaFetchFailed, RequestError
from glimt.frontend.local_media import read_local_media
from glimt.frontend.media_url import WebAddress, data_start, parse_redirect, parse_web_address
from glimt.frontend.prompt import MediaSource
from glimt.frontend.public_address import Network, is_public
from glimt.wire import MediaLimits

log = logging.getLogger(__name__)

Resolve = Callable[[str], Awaitable[Sequence[str]]]  # name -> addresses; raises OSError

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES = 1 << 16
_THREADS = 8
_INLINE_BYTES = 1 << 20  # copies beyond this leave the event loop


@dataclass(frozen=True, kw_only=True)
class FetchPolicy:
    """What may be fetched, and what it may cost.

    `allowed_networks` are let through though not public: only an operator or a test sets them.
    """

    allowed_domains: tuple[str, ...] | None = None  # None = any public host
    local_root: str | None = None  # None = no file: URLs
    limits: MediaLimits = field(default_factory=MediaLimits)
    allowed_networks: tuple[Network, ...] = ()
    allowed_ports: tuple[int, ...] = (80, 443)
    max_redirects: int = 0
    timeout_s: float = 10.0  # of one fetch, from the name's lookup to the last byte
    max_parallel: int = 64

    def max_bytes(self, kind: str) -> int:
        """Of an encoded image or video."""
        return self.limits.max_video_bytes if kind == "video" else self.limits.max_image_bytes


@dataclass(frozen=True)
class Payload:
    """The encoded bytes of a medium, or their base64 text, which is not checked yet."""

    data: bytes | memoryview
    is_base64: bool = False


class MediaFetcher:
    """Fetches by one policy; belongs to one event loop. `resolve` replaces the system's lookup."""

    def __init__(self, policy: FetchPolicy, resolve: Resolve | None = None) -> None:
        self._policy = policy
        self._domains = policy.allowed_domains and frozenset(
            domain.lower() for domain in policy.allowed_domains
        )
        # Its own threads: a name server or disk that hangs must not stop other work.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch")
        self._resolve = resolve or self._lookup
        self._places = asyncio.Semaphore(policy.max_parallel)
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, source: MediaSource) -> Payload:
        """The bytes behind `source.url`.

        Raises MediaBlocked (scheme, address or path not allowed), MediaFetchFailed (no usable
        answer, always the same text), BadMedia (too large, or not a data: URL's form).
        """
        scheme = source.url[:8].partition(":")[0].lower()
        if scheme == "data":
            return await self._from_data(source)
        if scheme == "file":
            return await self._from_file(source)
        if scheme in ("http", "https"):
            async with self._places:
                return await self._from_web(source)
        raise MediaBlocked(
            "only http, https, data and file URLs are read; base64 is written behind "
            "data:image/png;base64, and a path behind file://",
            param=source.param,
        )

    async def close(self) -> None:
        """Close connections; fetches that still run fail."""
        if self._session is not None:
            await self._session.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------------ data and file

    async def _from_data(self, source: MediaSource) -> Payload:
        url = source.url
        start = data_start(url, source.param)
        limit = self._policy.max_bytes(source.kind)
        if (len(url) - start) // 4 * 3 - 2 > limit:
            raise BadMedia(f"the {source.kind} is larger than {limit:,} bytes", param=source.param)
        try:
            if len(url) < _INLINE_BYTES:
                text = url.encode("ascii")
            else:
                text = await self._in_thread(url.encode, "ascii")
        except UnicodeEncodeError:
            raise BadMedia("not base64: it holds other characters", param=source.param) from None
        return Payload(memoryview(text)[start:], is_base64=True)

    async def _from_file(self, source: MediaSource) -> Payload:
        root = self._policy.local_root
        if root is None:
            raise MediaBlocked(
                "this server reads no local files: send them as data: addresses, or let the "
                "operator give --allowed-local-media-path",
                param=source.param,
            )
        limit = self._policy.max_bytes(source.kind)
        try:
            async with asyncio.timeout(self._policy.timeout_s):
                data = await self._in_thread(
                    read_local_media, root, source.url, limit, source.param
                )
        except TimeoutError:
            raise MediaBlocked("media file not available", param=source.param) from None
        return Payload(data)

    async def _in_thread(self, function: Callable[..., bytes], *arguments: object) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    # --------------------------------------------------------------------------------- web

    async def _from_web(self, source: MediaSource) -> Payload:
        address = self._checked(parse_web_address(source.url, source.param), source.param)
        try:
            async with asyncio.timeout(self._policy.timeout_s):
                return Payload(await self._follow(address, source))
        except RequestError:
            raise
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError, _NoAnswer) as error:
            log.warning(
                "a media fetch failed",
                extra={
                    "fields": {"host": address.host, "reason": str(error) or type(error).__name__}
                },
            )
            raise MediaFetchFailed(
                "the media could not be fetched; check the address, or send the file itself as a "
                "data: address",
                param=source.param,
            ) from None

    async def _follow(self, address: WebAddress, source: MediaSource) -> bytes:
        for _ in range(self._policy.max_redirects + 1):
            answer = await self._get(address, source)
            if isinstance(answer, bytes):
                return answer
            address = self._checked(parse_redirect(answer, address, source.param), source.param)
        raise _NoAnswer("too many redirects")

    async def _get(self, address: WebAddress, source: MediaSource) -> bytes | str:
        """The body, or where a redirect points."""
        limit = self._policy.max_bytes(source.kind)
        session = self._open_session()
        url = URL(str(address), encoded=True)
        async with session.get(url, allow_redirects=False) as response:
            location = response.headers.get("Location")
            if response.status in _REDIRECTS and location and self._policy.max_redirects:
                return location
            if response.status != 200:
                raise _NoAnswer(f"status {response.status}")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise _NoAnswer("the body is compressed though nobody asked")
            body = bytearray()
            # A promise of too much is enough; what comes is counted all the same.
            while len(body) <= limit and (response.content_length or 0) <= limit:
                chunk = await response.content.read(_CHUNK_BYTES)
                if not chunk:
                    return bytes(body)
                body += chunk
        raise BadMedia(f"the {source.kind} is larger than {limit:,} bytes", param=source.param)

    def _checked(self, address: WebAddress, param: str | None) -> WebAddress:
        """The address, if the policy lets it be asked. Raises MediaBlocked."""
        policy = self._policy
        if self._domains is not None and address.host not in self._domains:
            raise MediaBlocked("this server reads no media from that host", param=param)
        if address.port not in policy.allowed_ports:
            raise MediaBlocked("this server reads no media from that port", param=param)
        if address.is_ip and not is_public(address.host, policy.allowed_networks):
            raise MediaBlocked("this server reads no media from that address", param=param)
        return address

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=_CheckedResolver(self._resolve, self._policy.allowed_networks),
                ssl=ssl.create_default_context(),
                use_dns_cache=False,
                force_close=True,  # each fetch is checked for itself
                limit=0,  # the semaphore counts
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity", "User-Agent": "glimt"},
                timeout=aiohttp.ClientTimeout(total=self._policy.timeout_s),
                auto_decompress=False,
                trust_env=False,  # a proxy would resolve and connect for us
            )
        return self._session

    async def _lookup(self, name: str) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        )
        return [str(entry[4][0]) for entry in found]


class _NoAnswer(Exception):
    """The other side answered, but not with media. The text is for the log."""


class _CheckedResolver(AbstractResolver):
    """Gives aiohttp only addresses that passed; one bad address condemns the name."""

    def __init__(self, resolve: Resolve, allowed_networks: Sequence[Network]) -> None:
        self._resolve = resolve
        self._allowed_networks = allowed_networks

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of `host`. Raises OSError: that a name leads inside is not told."""
        addresses = list(dict.fromkeys(await self._resolve(host)))
        if not addresses or not all(is_public(a, self._allowed_networks) for a in addresses):
            raise OSError("the name has no address, or one that is not public")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is held."""
