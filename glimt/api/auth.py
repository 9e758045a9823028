"""Who may ask: deny by default, decided on the route that answers, before the body is read."""

import hashlib
import hmac
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from glimt.api.call import Call
from glimt.api.errors import HttpError
from glimt.api.route import Access

_NAME = r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?"
_HOST = re.compile(rf"({_NAME}|\[[0-9A-Fa-f:.]{{2,45}}\])(:[0-9]{{1,5}})?", re.ASCII)
_SCHEME = b"Bearer "


class Auth:
    """Passes a request on if its Host is well-formed and its key is one of ours.

    Without keys everybody may ask, but never for an operator's route. Raises HttpError 400, 401
    or 403, which the caller turns into an answer.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str], admin_keys: Iterable[str] = ()) -> None:
        self._app = app
        self._admin_digests = tuple(_digest(key.encode()) for key in admin_keys)
        user_digests = tuple(_digest(key.encode()) for key in keys)
        self._num_users = len(user_digests)
        # Who may do everything may also ask.
        self._digests = (*user_digests, *self._admin_digests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        _check_host([value for name, value in headers if name == b"host"])
        call: Call = scope["glimt.call"]
        access = Access.KEY if call.match is None else call.match.route.access
        if access is Access.ADMIN:
            self._check_admin(self._check_key(_given_keys(headers)), headers)
        elif self._num_users and access is not Access.OPEN:
            key = self._check_key(_given_keys(headers))
            if self._num_users > 1:  # clients with different keys share no caches
                scope["glimt.tenant"] = key
        await self._app(scope, receive, send)

    def _check_key(self, values: list[bytes]) -> bytes:
        """The digest of a valid key. All keys are compared, so that the time taken tells nothing
        about them."""
        given = values[0] if len(values) == 1 else b""
        digest = _digest(given)
        matches = [hmac.compare_digest(digest, each) for each in self._digests]
        if not given or not any(matches):
            raise HttpError(
                "invalid_api_key",
                "an API key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY",
                {"WWW-Authenticate": "Bearer"},
            )
        return digest

    def _check_admin(self, digest: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """The key is an operator's, and no web page uses it behind their back."""
        matches = [hmac.compare_digest(digest, each) for each in self._admin_digests]
        if not any(matches):
            raise HttpError("admin_only", "this key is not an admin key")
        if any(name == b"origin" for name, _ in headers):
            raise HttpError("admin_only", "this route is not for web pages")


def _given_keys(headers: list[tuple[bytes, bytes]]) -> list[bytes]:
    """The keys that a request names: as OpenAI's clients send them, or as Anthropic's do."""
    authorization = [value for name, value in headers if name == b"authorization"]
    if not authorization:
        return [value for name, value in headers if name == b"x-api-key"]
    if not all(value.startswith(_SCHEME) for value in authorization):
        return []
    return [value[len(_SCHEME) :] for value in authorization]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _check_host(values: list[bytes]) -> None:
    """A Host that is not a plain name and port could shift what others read as the path."""
    if not values:
        return  # HTTP/1.0
    if len(values) > 1 or not _HOST.fullmatch(values[0].decode("latin-1")):
        raise HttpError("bad_host", "the Host header is not a host name and port")
