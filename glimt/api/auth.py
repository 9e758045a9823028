"""Who may ask: deny by default, decided on the path that is routed, before the body is read."""

import hashlib
import hmac
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from glimt.api.errors import HttpError

# The only routes that need no key: what a load balancer asks, and it learns nothing else there.
OPEN_PATHS = ("/livez", "/readyz", "/health", "/ping")

_NAME = r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?"
_HOST = re.compile(rf"({_NAME}|\[[0-9A-Fa-f:.]{{2,45}}\])(:[0-9]{{1,5}})?", re.ASCII)
_SCHEME = b"Bearer "


class Auth:
    """Passes a request on if its Host is well-formed and its key is one of ours.

    Without keys everybody may ask. Raises HttpError 400 or 401, which the caller turns into an
    answer.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = tuple(_digest(key.encode()) for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        _check_host([value for name, value in headers if name == b"host"])
        # Servers put the prefix of --root-path before every path; the router takes it off again.
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        if self._digests and path not in OPEN_PATHS:
            key = self._check_key([value for name, value in headers if name == b"authorization"])
            if len(self._digests) > 1:  # clients with different keys share no caches
                scope["glimt.tenant"] = key
        await self._app(scope, receive, send)

    def _check_key(self, values: list[bytes]) -> bytes:
        """The digest of a valid key. All keys are compared, so that the time taken tells nothing
        about them."""
        given = b""
        if len(values) == 1 and values[0].startswith(_SCHEME):
            given = values[0][len(_SCHEME) :]
        digest = _digest(given)
        matches = [hmac.compare_digest(digest, each) for each in self._digests]
        if not given or not any(matches):
            raise HttpError(
                401,
                "invalid_api_key",
                "an API key is needed: Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
            )
        return digest


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _check_host(values: list[bytes]) -> None:
    """A Host that is not a plain name and port could shift what others read as the path."""
    if not values:
        return  # HTTP/1.0
    if len(values) > 1 or not _HOST.fullmatch(values[0].decode("latin-1")):
        raise HttpError(400, "bad_host", "the Host header is not a host name and port")
