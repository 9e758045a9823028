"""What only the operator may do; the table of errors; and answers that take too long."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

import glimt
from glimt.api.error_table import ERRORS
from glimt.api.route import Access
from glimt.api.routes import ROUTES
from glimt.wire import ErrorInfo, ResetCaches
from tests.support.http_half import HEADERS, Reply, Serving, chat_body, spoken

ADMIN = [route for route in ROUTES if route.access is Access.ADMIN]
KEYS: dict[str, Any] = {"api_keys": ("user",), "admin_keys": ("root",)}


def bearer(key: str) -> tuple[bytes, bytes]:
    return (b"authorization", f"Bearer {key}".encode())


async def admin(serving: Serving, method: str, path: str) -> Reply:
    return await serving.call(method, path, headers=[*HEADERS, bearer("root")])


def test_the_operators_routes_are_these() -> None:
    assert {route.path for route in ADMIN} == {
        "/pause",
        "/resume",
        "/is_paused",
        "/sleep",
        "/wake_up",
        "/is_sleeping",
        "/start_profile",
        "/stop_profile",
        "/expert_load",
        "/reset_prefix_cache",
        "/reset_encoder_cache",
        "/reset_mm_cache",
    }


@pytest.mark.parametrize("route", ADMIN, ids=lambda route: route.path)
async def test_an_operators_route_is_for_operators(route: Any) -> None:
    (method,) = route.methods
    serving = Serving(**KEYS)
    for headers, status in (
        ([], 401),
        ([bearer("other")], 401),
        ([bearer("user")], 403),
        ([bearer("root"), (b"origin", b"http://evil")], 403),
        ([bearer("root")], 200),
    ):
        reply = await serving.call(method, route.path, headers=[*HEADERS, *headers])
        assert reply.status == status
    for state, status in (({"api_keys": ("user",)}, 404), ({}, 404)):
        reply = await Serving(**state).call(method, route.path, headers=[*HEADERS, bearer("user")])
        assert reply.status == status
    reply = await Serving(admin_keys=("root",)).call(method, route.path, headers=HEADERS)
    assert reply.status == 401


async def test_an_operator_may_also_ask_and_without_user_keys_everybody_may() -> None:
    reply = await Serving(**KEYS).ask(body=chat_body(), headers=[*HEADERS, bearer("root")])
    assert reply.status == 200
    assert (await Serving(admin_keys=("root",)).chat()).status == 200


async def test_a_paused_server_takes_nothing_and_lets_what_runs_finish() -> None:
    serving = Serving(spoken("yes"), **KEYS)
    ask = {"body": chat_body(), "headers": [*HEADERS, bearer("user")]}
    running = asyncio.create_task(serving.call(**ask))  # type: ignore[arg-type]
    while not serving.engine.submits:
        await asyncio.sleep(0)
    paused = await admin(serving, "POST", "/pause?mode=wait")
    assert paused.json() == {"status": "paused", "num_open": 1}
    assert (await admin(serving, "GET", "/is_paused")).json() == {"is_paused": True}
    reply = await serving.call(**ask)  # type: ignore[arg-type]
    assert (reply.status, reply.error["code"]) == (503, "paused")
    assert reply.headers["retry-after"]
    assert (await serving.call("GET", "/readyz", headers=HEADERS)).json() == {"status": "paused"}
    assert (await serving.call("GET", "/livez", headers=HEADERS)).status == 200
    while not running.done():
        serving.engine.step()
        await asyncio.sleep(0)
    assert running.result().status == 200
    assert (await admin(serving, "POST", "/resume")).json()["status"] == "running"
    assert (await serving.ask(**ask)).status == 200  # type: ignore[arg-type]


async def test_a_pause_that_aborts_ends_what_runs() -> None:
    serving = Serving(spoken("word " * 50), **KEYS)
    headers = [*HEADERS, bearer("user")]
    running = asyncio.create_task(serving.call(body=chat_body(stream=True), headers=headers))
    while not serving.engine.submits:
        await asyncio.sleep(0)
    serving.engine.step()
    await asyncio.sleep(0)
    await admin(serving, "POST", "/pause")
    assert "error" in (await running).events[-2]
    for mode, code in (("keep", "unsupported"), ("hard", "invalid_request")):
        reply = await admin(serving, "POST", f"/pause?mode={mode}")
        assert (reply.status, reply.error["code"], reply.error["param"]) == (400, code, "mode")


async def test_an_order_that_is_misspelt_is_not_carried_out() -> None:
    serving = Serving(**KEYS)
    for path, name, text in (
        ("/pause?Mode=wait", "Mode", "'Mode' is not known here, only mode"),
        ("/pause?mode=wait&mode=abort", "mode", "mode must be one of abort, wait"),
        ("/sleep?level=1&level=2", "level", "level must be one of 1, 2"),
        ("/sleep?lvl=2", "lvl", "only level, mode"),
        ("/wake_up?tag=weights", "tag", "only tags"),
    ):
        reply = await admin(serving, "POST", path)
        assert (reply.status, reply.error["param"]) == (400, name)
        assert text in reply.error["message"]
    assert (await admin(serving, "GET", "/is_paused")).json() == {"is_paused": False}
    assert (await admin(serving, "GET", "/is_sleeping")).json()["is_sleeping"] is False
    headers = [*HEADERS, bearer("root")]
    reply = await serving.ask("POST", "/resume", body=b"{}", headers=headers)
    assert (reply.status, reply.error["message"]) == (413, "there must be no body here")


async def test_a_sleeping_server_takes_nothing_until_it_is_woken() -> None:
    serving = Serving(spoken("yes"), **KEYS)
    ask = {"body": chat_body(), "headers": [*HEADERS, bearer("user")]}
    awake = {"is_sleeping": False, "level": 0}
    for query, level in (("", 1), ("?level=2&mode=wait", 2)):
        assert (await admin(serving, "GET", "/is_sleeping")).json() == awake
        asleep = {"is_sleeping": True, "level": level}
        assert (await admin(serving, "POST", f"/sleep{query}")).json() == asleep
        assert (await admin(serving, "GET", "/is_sleeping")).json() == asleep
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/tokenize"):
            reply = await serving.call("POST", path, **ask)  # type: ignore[arg-type]
            assert (reply.status, reply.headers["retry-after"]) == (503, "5")
        assert b"asleep" in (await serving.call("GET", "/readyz", headers=HEADERS)).body
        assert (await serving.call("GET", "/health", headers=HEADERS)).status == 503
        assert (await serving.call("GET", "/livez", headers=HEADERS)).status == 200
        states = ("awake", "weights_offloaded", "discard_all")
        metrics = serving.metrics.render().decode()
        rows = [line for line in metrics.splitlines() if line.startswith("vllm:engine_sleep_state")]
        assert [line.endswith("1.0") for line in rows] == [
            state == states[level] for state in states
        ]
        assert (await admin(serving, "POST", "/wake_up?tags=weights&tags=kv_cache")).json() == awake
        assert (await serving.ask(**ask)).status == 200  # type: ignore[arg-type]
    assert [(each.kind, each.level) for each in serving.engine.orders] == [
        ("sleep", 1),
        ("wake", 0),
        ("sleep", 2),
        ("wake", 0),
    ]
    assert serving.media.num_forgotten == 2


@pytest.mark.parametrize("mode", ["abort", "wait"])
async def test_answers_end_before_the_engine_sleeps(mode: str) -> None:
    serving = Serving(spoken("a few words"), **KEYS)
    ask = {"body": chat_body(stream=True), "headers": [*HEADERS, bearer("user")]}
    running = asyncio.create_task(serving.call(**ask))  # type: ignore[arg-type]
    while not serving.engine.submits:
        await asyncio.sleep(0)
    serving.engine.step()
    sleeping = asyncio.create_task(admin(serving, "POST", f"/sleep?mode={mode}"))
    await asyncio.sleep(0)
    assert not serving.engine.orders
    assert (await serving.call(**ask)).error["code"] == "asleep"  # type: ignore[arg-type]
    while not sleeping.done():
        serving.engine.step()
        await asyncio.sleep(0)
    assert (await sleeping).json() == {"is_sleeping": True, "level": 1}
    assert ("error" in (await running).events[-2]) is (mode == "abort")


async def test_an_engine_that_cannot_sleep_or_dies_leaves_the_server_as_it_was() -> None:
    serving = Serving(spoken("yes"), **KEYS)
    serving.engine.order_error = ErrorInfo("engine_failed", "no")
    reply = await admin(serving, "POST", "/sleep")
    assert (reply.status, reply.error["code"]) == (500, "engine_failed")
    ask = {"body": chat_body(), "headers": [*HEADERS, bearer("user")]}
    assert (await serving.ask(**ask)).status == 200  # type: ignore[arg-type]
    serving.engine.order_error = None
    await admin(serving, "POST", "/sleep")
    serving.engine.die()
    reply = await admin(serving, "POST", "/wake_up")
    assert (reply.status, reply.error["code"]) == (503, "not_ready")
    serving.engine.sleep_level = 0
    serving.engine.start()  # as another, which is awake
    assert (await serving.ask(**ask)).status == 200  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "code", "param"),
    [
        ("/sleep?level=3", "invalid_request", "level"),
        ("/sleep?mode=keep", "unsupported", "mode"),
        ("/sleep?mode=hard", "invalid_request", "mode"),
        ("/wake_up?tags=weights", "unsupported", "tags"),
        ("/wake_up?tags=other", "invalid_request", "tags"),
    ],
)
async def test_wishes_that_cannot_be_are_named(path: str, code: str, param: str) -> None:
    serving = Serving(**KEYS)
    reply = await admin(serving, "POST", path)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, code, param)
    assert serving.engine.orders == []


async def test_the_answer_to_a_profile_names_its_place() -> None:
    serving = Serving(**KEYS)
    for verb, status in (("start", "recording"), ("stop", "written")):
        reply = await admin(serving, "POST", f"/{verb}_profile")
        assert reply.json() == {"status": status, "paths": ["/profiles/a"]}
    serving.engine.order_error = ErrorInfo("unsupported", "profiling needs --profiler-config")
    reply = await admin(serving, "POST", "/start_profile")
    assert (reply.status, reply.error["code"]) == (400, "unsupported")


async def test_caches_are_forgotten_each_by_itself() -> None:
    serving = Serving(**KEYS)
    await admin(serving, "POST", "/reset_prefix_cache")
    await admin(serving, "POST", "/reset_encoder_cache")
    assert serving.engine.resets == [ResetCaches(True, False), ResetCaches(False, True)]
    assert serving.media.num_forgotten == 0
    await admin(serving, "POST", "/reset_mm_cache")
    assert serving.media.num_forgotten == 1
    assert len(serving.engine.resets) == 2


async def test_a_body_where_none_belongs_is_a_413() -> None:
    headers = [*HEADERS, bearer("root")]
    reply = await Serving(**KEYS).call("POST", "/pause", body=b"{}", headers=headers)
    assert reply.status == 413


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_an_answer_that_does_not_begin_in_time_is_a_504(path: str, stream: bool) -> None:
    serving = Serving(first_token_timeout_s=0.01)
    fields = {"messages": [{"role": "user", "content": "hi"}], "input": "hi"}
    body = json.dumps({"max_tokens": 9, "stream": stream, **fields}).encode()
    reply = await serving.call("POST", path, body=body)
    assert reply.status == 504
    assert reply.json()["error"]["type"] == "timeout_error"
    assert reply.headers["x-should-retry"] == "false"
    assert serving.engine.aborts == [serving.engine.submits[0].request_id]


def test_every_code_of_the_source_is_in_the_table() -> None:
    codes: set[str] = set()
    for file in Path(glimt.__file__).parent.rglob("*.py"):
        text = file.read_text()
        codes |= set(re.findall(r'^\s+code = "(\w+)"', text, re.M))
        codes |= set(re.findall(r'code="(\w+)"', text))
        codes |= set(re.findall(r'HttpError\(\s*"(\w+)"', text))
        codes |= set(re.findall(r'super\(\).__init__\(\s*"(\w+)",', text))
    start = {"startup_error", "bad_settings", "bad_checkpoint", "not_enough_memory"}
    assert codes - start - {"client_left"} <= set(ERRORS)
    assert {"invalid_json", "unknown_field", "paused", "admin_only", "body_timeout"} <= codes


def test_what_can_never_succeed_is_not_repeated_by_clients() -> None:
    for row in ERRORS.values():
        if row.type == "invalid_request_error":
            assert 400 <= row.status < 500
            assert row.status not in (408, 409, 429)
