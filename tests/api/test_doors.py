"""Who comes in and with how much: keys, hosts, sizes, types, methods, labels."""

import ast
import asyncio
import inspect
import re
from typing import Any

import pytest

from glimt.api import auth
from glimt.api.route import Access
from glimt.api.routes import ROUTES
from glimt.api.state import HttpLimits
from tests.support.http_half import HEADERS, Reply, Serving, chat_body

HOST = (b"host", b"localhost")
JSON = (b"content-type", b"application/json")
KEY = "s3cret-key"


def with_key(value: bytes) -> list[tuple[bytes, bytes]]:
    return [*HEADERS, (b"authorization", value)]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
async def test_every_route_but_the_literal_open_ones_wants_a_key(route: Any) -> None:
    serving = Serving(api_keys=(KEY,))
    for method in (*route.methods, "DELETE"):
        reply = await serving.ask(method, route.path)
        if route.path in ("/livez", "/readyz", "/health", "/ping"):
            assert reply.status in (200, 405)
        else:
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.error["type"] == "authentication_error"


def test_only_what_a_balancer_asks_is_open() -> None:
    open_paths = {route.path for route in ROUTES if route.access is Access.OPEN}
    assert open_paths == {"/livez", "/readyz", "/health", "/ping"}


async def test_a_key_may_come_as_anthropics_clients_send_it() -> None:
    serving = Serving(api_keys=(KEY,))
    for given, status in (
        ([(b"x-api-key", KEY.encode())], 200),
        ([(b"x-api-key", b"other")], 401),
        ([(b"x-api-key", KEY.encode())] * 2, 401),
        ([(b"x-api-key", b"")], 401),
        ([(b"authorization", b"Bearer other"), (b"x-api-key", KEY.encode())], 401),
    ):
        reply = await serving.ask(body=chat_body(), headers=[*HEADERS, *given])
        assert reply.status == status


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"bearer s3cret-key",
        b"Bearer  s3cret-key",
        b"Basic s3cret-key",
        b"Bearer s3cret-key\0",
        b"Bearer s3cret-key?a=b",
        b"Bearer s3cret-ke",
        b"Bearer \xff\xff",
        b"s3cret-key",
    ],
)
async def test_a_key_that_is_not_exactly_one_of_ours_is_a_401(value: bytes) -> None:
    reply = await Serving(api_keys=(KEY,)).ask(body=chat_body(), headers=with_key(value))
    assert reply.status == 401
    assert KEY not in reply.body.decode()


async def test_each_of_several_keys_opens_and_their_caches_are_apart() -> None:
    serving = Serving(api_keys=("one", "twö"))
    for key in ("one", "twö", "one"):
        reply = await serving.ask(body=chat_body(), headers=with_key(f"Bearer {key}".encode()))
        assert reply.status == 200
    salts = [submit.cache_salt for submit in serving.engine.submits]
    assert salts[0] == salts[2] != salts[1]
    serving = Serving(api_keys=("one",))
    await serving.ask(body=chat_body(), headers=with_key(b"Bearer one"))
    assert serving.engine.submits[0].cache_salt == b""


async def test_a_prefix_of_the_operator_changes_nothing() -> None:
    serving = Serving(api_keys=(KEY,))
    for path, headers, status in (
        ("/health", HEADERS, 200),
        ("/version", HEADERS, 401),
        ("/version", with_key(b"Bearer s3cret-key"), 200),
        ("/glm/version", HEADERS, 401),  # from a proxy that leaves the prefix where it is
        ("/glm/version", with_key(b"Bearer s3cret-key"), 200),
        ("/glm/glm/version", with_key(b"Bearer s3cret-key"), 404),
        ("/glmversion", with_key(b"Bearer s3cret-key"), 404),
    ):
        reply = await serving.call("GET", f"/glm{path}", headers=headers, root_path="/glm")
        assert reply.status == status, path


async def test_two_authorization_headers_are_none() -> None:
    headers = [*with_key(b"Bearer s3cret-key"), (b"authorization", b"Bearer s3cret-key")]
    assert (await Serving(api_keys=(KEY,)).ask(body=chat_body(), headers=headers)).status == 401


def test_keys_are_compared_by_digest_over_all_keys() -> None:
    tree = ast.parse(inspect.getsource(auth.Auth))
    (check,) = [n for n in ast.walk(tree) if getattr(n, "name", "") == "_check_key"]
    text = ast.unparse(check)
    assert "hmac.compare_digest" in text
    assert not [node for node in ast.walk(check) if isinstance(node, ast.For | ast.Break)]
    assert "==" not in text.replace("len(values) == 1", "")


@pytest.mark.parametrize("name", ["/sleep", "/collective_rpc", "/reset_prefix_cache", "/pause"])
async def test_control_routes_do_not_exist_here(name: str) -> None:
    for method in ("GET", "POST"):
        assert (await Serving().ask(method, name, headers=[HOST])).status == 404


@pytest.mark.parametrize(
    "host", [b"x/health?", b"a#b", b"", b"a b", b"a@b", b"a:b", b"[::1", b"a:80:80", b"-a", b"\xff"]
)
async def test_a_host_that_is_not_a_name_and_port_is_a_400(host: bytes) -> None:
    reply = await Serving(api_keys=(KEY,)).ask("GET", "/v1/models", headers=[(b"host", host)])
    assert reply.status == 400


@pytest.mark.parametrize("host", [b"a", b"a.b-c.d:80", b"127.0.0.1:8000", b"[::1]:80", b"my_host"])
async def test_ordinary_hosts_pass(host: bytes) -> None:
    assert (await Serving().ask("GET", "/v1/models", headers=[(b"host", host)])).status == 200


async def test_two_hosts_are_a_400_and_none_is_fine() -> None:
    assert (await Serving().ask("GET", "/version", headers=[HOST, HOST])).status == 400
    assert (await Serving().ask("GET", "/version", headers=[])).status == 200


@pytest.mark.parametrize(
    "path",
    ["//v1/models", "/v1/../v1/models", "/V1/models", "/v1/models\0", "/health/../v1/models"],
)
async def test_no_spelling_of_a_path_gets_around_the_key(path: str) -> None:
    reply = await Serving(api_keys=(KEY,)).ask("GET", path, headers=[HOST])
    assert reply.status in (400, 401, 404)


@pytest.mark.parametrize(
    ("path", "cure"),
    [
        ("/chat/completions", "/v1/chat/completions is what was meant?"),
        ("/v1/v1/chat/completions", "/v1/chat/completions is what was meant?"),
        ("//v1//models/", "/v1/models is what was meant?"),
        ("/v1/health", "/health is what was meant?"),
        ("/v1/embeddings", "this server has no embeddings: its model answers conversations"),
        ("/v1/files", "GET / lists all"),
        ("/v1", "GET / lists all"),
    ],
)
async def test_an_address_without_a_route_says_what_to_do(path: str, cure: str) -> None:
    reply = await Serving().ask("GET", path, headers=[HOST])
    assert (reply.status, reply.error["code"]) == (404, "not_found")
    assert cure in reply.error["message"]


async def test_a_wrong_method_is_a_405_that_names_the_right_ones() -> None:
    for route in ROUTES:
        for method in ("PUT", "DELETE", "TRACE", "get"):
            headers = [HOST, (b"x-api-key", b"a")]
            reply = await Serving(admin_keys=("a",)).ask(method, route.path, headers=headers)
            assert reply.status == 405
            assert set(route.methods) <= set(reply.headers["allow"].split(", "))


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ([(b"content-type", b"multipart/form-data; boundary=x")], 3),
        ([(b"content-type", b"text/plain"), (b"content-encoding", b"gzip")], 3),
        ([(b"content-type", b"audio/mpeg"), (b"transfer-encoding", b"chunked")], 0),
        ([JSON], 2000),
    ],
)
async def test_whatever_is_sent_an_address_comes_before_what_is_sent_there(
    content: list[tuple[bytes, bytes]], size: int
) -> None:
    for path, method, status, says in (
        ("/v1/audio/transcriptions", "POST", 404, "this server has no audio/transcriptions"),
        ("/v1/chat/completions", "PUT", 405, "the methods here are POST"),
        ("/v1/models", "POST", 405, "the methods here are GET, HEAD"),
    ):
        serving = Serving(limits=LIMITS, api_keys=(KEY,))
        headers = [HOST, (b"x-api-key", KEY.encode()), *content]
        reply = await serving.ask(method, path, body=b"-" * size, headers=headers)
        assert reply.status == status
        assert says in reply.error["message"]
        reply = await serving.ask(method, path, body=b"-" * size, headers=[HOST, *content])
        assert reply.status == 401


LIMITS = HttpLimits(max_body_bytes=1000, body_timeout_s=0.01, max_headers=10, max_header_bytes=200)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([HOST, (b"content-type", b"text/plain")], 415),
        ([HOST], 415),
        ([HOST, (b"content-type", b"multipart/form-data; boundary=x")], 415),
        ([HOST, (b"content-type", b"application/json; charset=utf-16")], 415),
        ([HOST, JSON, JSON], 415),
        ([HOST, (b"content-type", b'Application/JSON; charset="UTF-8"')], 200),
        ([HOST, (b"content-type", b"application/json;charset=utf-8")], 200),
        ([HOST, JSON, (b"content-encoding", b"gzip")], 415),
        ([HOST, JSON, (b"content-encoding", b"br")], 415),
        ([HOST, JSON, (b"content-encoding", b"identity")], 200),
        ([HOST, JSON, *[(b"x-a", b"b")] * 10], 431),
        ([HOST, JSON, (b"x-a", b"b" * 200)], 431),
    ],
)
async def test_bodies_are_plain_json_under_small_headers(
    headers: list[tuple[bytes, bytes]], status: int
) -> None:
    reply = await Serving(limits=LIMITS).ask(body=chat_body(), headers=headers)
    assert reply.status == status
    if status != 200:
        assert reply.headers["connection"] == "close"


async def test_a_body_of_the_limit_passes_and_one_byte_more_does_not() -> None:
    body = chat_body(user="")
    exact = chat_body(user="x" * (1000 - len(body)))
    assert (await Serving(limits=LIMITS).ask(body=exact)).status == 200
    reply = await Serving(limits=LIMITS).ask(body=exact + b" ")
    assert (reply.status, reply.error["type"]) == (413, "request_too_large")


async def drip(serving: Serving, parts: list[bytes | None]) -> Reply:
    """A chunked body in parts; at None nothing comes any more."""
    reply = Reply()
    left = list(parts)

    async def receive() -> dict[str, Any]:
        part = left.pop(0)
        if part is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": part, "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        reply.status = message.get("status", reply.status)
        reply.pieces.append(message.get("body", b""))

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [HOST, JSON, (b"transfer-encoding", b"chunked")],
    }
    await serving.app(scope, receive, send)
    return reply


async def test_an_endless_body_is_cut_off_where_the_limit_is() -> None:
    parts: list[bytes | None] = [b"x" * 300] * 100
    reply = await drip(Serving(limits=LIMITS), parts)
    assert reply.status == 413
    assert reply.error["code"] == "request_too_large"


async def test_a_body_that_does_not_come_is_a_408() -> None:
    reply = await drip(Serving(limits=LIMITS), [b"{", None])
    assert (reply.status, reply.error["type"]) == (408, "timeout_error")


async def test_a_length_beyond_the_limit_is_refused_unread() -> None:
    for length in (b"1001", b"10737418240", b"9" * 5000):
        headers = [HOST, JSON, (b"content-length", length)]
        limits = HttpLimits(max_body_bytes=1000)
        assert (await Serving(limits=limits).ask(headers=headers)).status == 413


async def test_a_long_address_is_a_414() -> None:
    for path in ("/" + "x" * 9000, "/version?" + "x" * 9000):
        assert (await Serving().ask("GET", path, headers=[HOST])).status == 414


@pytest.mark.parametrize("label", [b"abc-1", b"1.2.3.4:9", b"../../x", b"~" * 128])
async def test_a_request_label_is_echoed_and_never_an_id(label: bytes) -> None:
    serving = Serving()
    headers = [*HEADERS, (b"x-request-id", label)]
    replies = [await serving.ask(body=chat_body(), headers=headers) for _ in range(2)]
    assert {reply.headers["x-request-id"] for reply in replies} == {label.decode()}
    ids = {reply.json()["id"] for reply in replies}
    assert len(ids) == 2
    assert not any(label.decode() in each for each in ids)


@pytest.mark.parametrize("label", [b"", b"a b", b"a\r\nX: y", b"x" * 129, b"\xff", b"a\x1b[31m"])
async def test_labels_that_are_not_visible_ascii_are_ignored(label: bytes) -> None:
    headers = [*HEADERS, (b"x-request-id", label)]
    reply = await Serving().ask(body=chat_body(), headers=headers)
    assert reply.status == 200
    assert reply.json()["id"] == f"chatcmpl-{reply.headers['x-request-id']}"


async def test_every_answer_can_be_named_in_a_report() -> None:
    for path, body in (("/v1/chat/completions", b"{}"), ("/nowhere", b""), ("/version", b"")):
        for headers, shown in (([], None), ([(b"x-request-id", b"mine")], "mine")):
            method = "POST" if body else "GET"
            reply = await Serving().ask(method, path, body=body, headers=[*HEADERS, *headers])
            given = reply.headers["x-request-id"]
            assert given == shown if shown else len(given) == 32


async def test_labels_are_not_echoed_when_switched_off() -> None:
    headers = [*HEADERS, (b"x-request-id", b"abc")]
    reply = await Serving(request_id_headers=False).ask(body=chat_body(), headers=headers)
    assert "x-request-id" not in reply.headers


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
async def test_a_client_may_choose_the_copy_of_the_model(path: str) -> None:
    def asked(copy: bytes) -> list[tuple[bytes, bytes]]:
        return [*HEADERS, (b"x-data-parallel-rank", copy)]

    body = b'{"model": "tiny", "prompt": "Hi", "max_tokens": 3}'
    if path != "/v1/completions":
        body = chat_body(max_tokens=3)
    serving = Serving()
    assert (await serving.ask(path=path, body=body, headers=asked(b"0"))).status == 200
    for copy, why in (
        (b"1", "X-Data-Parallel-Rank: there is no copy 1 here; this server has 0"),
        (b"first", "X-Data-Parallel-Rank must be the number"),
    ):
        reply = await serving.ask(path=path, body=body, headers=asked(copy))
        assert reply.status == 400
        assert why in reply.error["message"]
        assert reply.error.get("param") in ("X-Data-Parallel-Rank", None)
    assert serving.client.num_open == 0


async def test_browsers_may_call_only_from_allowed_origins() -> None:
    headers = [*HEADERS, (b"origin", b"http://page")]
    reply = await Serving().ask(body=chat_body(), headers=headers)
    assert "access-control-allow-origin" not in reply.headers
    serving = Serving(allowed_origins=("http://page",), api_keys=(KEY,))
    reply = await serving.ask(body=chat_body(), headers=headers)
    assert reply.status == 401
    assert reply.headers["access-control-allow-origin"] == "http://page"
    preflight = [HOST, (b"origin", b"http://page"), (b"access-control-request-method", b"POST")]
    reply = await serving.ask("OPTIONS", headers=preflight)
    assert reply.status == 200


async def test_no_error_shows_what_is_inside() -> None:
    serving = Serving(api_keys=(KEY,))
    replies = [await serving.ask(body=b"{", headers=with_key(b"Bearer " + KEY.encode()))]
    replies += [await serving.ask("GET", path) for path in ("/", "/nope", "/v1/models")]
    for reply in replies:
        assert not re.search(rb"0x[0-9a-f]{6,}|Traceback|\.py|/home/|/root/", reply.body)
