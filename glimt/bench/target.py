"""The server to be measured: its address, its model's name, what it says of itself."""

import secrets
from dataclasses import dataclass
from typing import Any

import msgspec

from glimt.bench.load.bodies import SUFFIXES
from glimt.bench.load.http import Address, Exchange, HttpClient
from glimt.bench.options import TargetOptions
from glimt.errors import BadSettings

_MAX_LISTED = 8  # models that are kept of the server's list
_INQUIRY_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server as the load sees it."""

    address: Address
    path: str
    headers: dict[str, str]
    model: str  # as sent to the server
    model_id: str  # as the user named it
    root: str | None  # where the server says it has the model from
    request_id_prefix: str
    verify: bool
    timeout_s: float
    about: dict[str, Any]  # the server's own words: models, version

    def client(self) -> HttpClient:
        """A client with connections of its own."""
        return HttpClient(self.address, verify=self.verify, timeout_s=self.timeout_s)

    def unlisted(self) -> str | None:
        """What to think of a model that is not among those that the server lists; None if it is."""
        names = [str(model.get("id")) for model in self.about["models"]]
        if not names or len(names) == _MAX_LISTED or self.model in names:
            return None
        return f"the server lists {', '.join(names)}, not {self.model}"

    def head(self, client: HttpClient) -> bytes:
        """Request line and headers of every request."""
        return client.head("POST", self.path, {"Content-Type": "application/json", **self.headers})


async def find_target(options: TargetOptions, api_key: str | None) -> Target:
    """Check the address and ask the server for its models. Raises BadSettings.

    A server that cannot be reached is an error unless there is to be a ready check: then it may
    still be starting.
    """
    url = options.base_url or _url(options)
    _check_path(options, url)
    address = Address.of(url)
    headers = _headers(options, api_key)
    models, version = await _ask(address, options, headers)
    first: dict[str, Any] = models[0] if models else {}
    model_id = options.model or first.get("id")
    if model_id is None:
        raise BadSettings(f"--model is missing, and {url}/v1/models names none")
    name = options.served_model_name or model_id
    mine = next((model for model in models if model.get("id") == name), first)
    return Target(
        address=address,
        path=options.endpoint,
        headers=headers,
        model=name,
        model_id=model_id,
        root=mine.get("root"),
        request_id_prefix=options.request_id_prefix or f"bench-{secrets.token_hex(4)}-",
        verify=not options.insecure,
        timeout_s=options.request_timeout,
        about={"models": models[:_MAX_LISTED], "version": version},
    )


def _check_path(options: TargetOptions, url: str) -> None:
    """Raises BadSettings if this cannot be the address of the API that is asked for."""
    suffix, path = SUFFIXES[options.backend], options.endpoint
    is_chat = path.endswith("chat/completions")
    if not path.endswith(suffix) or (is_chat and options.backend != "openai-chat"):
        chat = "; that path is the chat API's: --backend openai-chat" if is_chat else ""
        raise BadSettings(
            f"--endpoint {path}: --backend {options.backend} needs a path that ends in {suffix}, "
            f"such as /v1/{suffix}{chat}"
        )
    if url.rstrip("/").endswith("/v1") and path.startswith("/v1/"):
        raise BadSettings(
            f"--base-url {url}: --endpoint begins with /v1 as well: leave it out of the base URL"
        )


def _url(options: TargetOptions) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{options.port}"


def _headers(options: TargetOptions, api_key: str | None) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    for text in options.header or ():
        name, found, value = text.partition("=")
        if not found or not name.strip() or any(c in text for c in "\r\n"):
            raise BadSettings(f"--header {text}: must be KEY=VALUE")
        headers[name.strip()] = value.strip()
    return headers


async def _ask(
    address: Address, options: TargetOptions, headers: dict[str, str]
) -> tuple[list[dict[str, Any]], Any]:
    """What /v1/models and /version say; ([], None) where they say nothing."""
    client = HttpClient(address, verify=not options.insecure, timeout_s=_INQUIRY_TIMEOUT_S)
    try:
        exchange = await client.get("/v1/models", headers)
        if exchange.failure == "connect" and options.ready_check_timeout_sec == 0:
            raise BadSettings(
                f"there is no server at {exchange.error}; start it, or wait for it with "
                "--ready-check-timeout-sec 600"
            )
        if exchange.status in (401, 403) and options.model is None:
            raise BadSettings(
                f"the server answers {exchange.status} to /v1/models: it wants "
                f"{'another' if 'Authorization' in headers else 'a'} key; set OPENAI_API_KEY"
            )
        models = _json(exchange).get("data")
        version = _json(await client.get("/version", headers)) if models else {}
    finally:
        client.close()
    known = models if isinstance(models, list) else []
    return [model for model in known if isinstance(model, dict)], version.get("version")


def _json(exchange: Exchange) -> dict[str, Any]:
    if exchange.status != 200 or exchange.failure is not None:
        return {}
    try:
        return msgspec.json.decode(exchange.body(), type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
