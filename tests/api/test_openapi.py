"""The OpenAPI document against the server: whatever is sent, no answer is undocumented or a 5xx.

Here in one process, with bodies of our own making (broken JSON included), judged by the types of
the answers. `tests/e2e/test_openapi.py` has schemathesis judge a running server.
"""

import asyncio
import functools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glimt.api.errors import AnthropicErrorAnswer, ErrorAnswer
from glimt.api.route import ApiRoute
from glimt.api.routes import ROUTES
from glimt.api.tools import ToolSettings
from glimt.errors import MediaBlocked
from tests.support.http_half import HEADERS, Reply, Serving, spoken
from tests.support.json_schemas import Schemas, damaged, written
from tests.support.prompts import FakeMedia, tokenizer

FAILURES = {"openai": ErrorAnswer, "anthropic": AnthropicErrorAnswer}
WITH_BODY = [route for route in ROUTES if route.body is not None]
ADMIN = (b"x-api-key", b"root")


class NoMedia(FakeMedia):
    """Every address but those with a grid is one that may not be read."""

    async def prepare(self, source: Any) -> Any:
        if source.url not in self.grids:
            raise MediaBlocked("this address may not be read", param=source.param)
        return await super().prepare(source)


def make_serving() -> Serving:
    tools = ToolSettings.of(tokenizer(), "glm45", auto=True)
    media = NoMedia({"data:a": (4, 4)})
    return Serving(
        spoken("<think>a</think>yes"),
        tools=tools,
        parse_reasoning=True,
        admin_keys=("root",),
        media=media,
    )


@functools.cache
def the_document() -> Any:
    return asyncio.run(make_serving().call("GET", "/openapi.json", headers=HEADERS)).json()


@functools.cache
def bodies(path: str) -> st.SearchStrategy[Any]:
    """Values that the document allows as the body of a request."""
    operation = the_document()["paths"][path]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    return Schemas(the_document()["components"]["schemas"]).values(schema)


def judge(route: ApiRoute, method: str, reply: Reply, body: bytes) -> None:
    """The answer is one that the document speaks of, in a form that it shows."""
    responses = the_document()["paths"][route.path][method.lower()]["responses"]
    told = f"{reply.status} for {body[:300]!r}: {reply.body[:300]!r}"
    assert str(reply.status) in responses, told
    assert reply.status < 500, told
    kind = reply.headers.get("content-type", "").partition(";")[0]
    content = responses[str(reply.status)]["content"]
    assert kind in content or (kind == "" and not content and not reply.body), told
    if reply.status >= 400:
        msgspec.json.decode(reply.body, type=FAILURES[route.errors], strict=True)
    elif kind == "text/event-stream":
        for line in reply.body.decode().splitlines():
            if line.startswith("data: {"):
                msgspec.json.decode(line.removeprefix("data: "), type=route.event)
    elif route.answer is not None:
        msgspec.json.decode(reply.body, type=route.answer)


def ask(route: ApiRoute, body: bytes) -> None:
    async def run() -> Reply:
        serving = make_serving()
        serving.engine.tokens_per_step = 50
        reply = await serving.ask("POST", route.path, body=body)
        assert serving.client.num_preparing == 0
        return reply

    judge(route, "POST", asyncio.run(run()), body)


CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much]


def try_route(route: ApiRoute, num_examples: int) -> None:
    """With what the document allows, and with the same after something in it was broken."""
    allowed = bodies(route.path)

    @settings(max_examples=num_examples, suppress_health_check=CHECKS, database=None)
    @given(st.data())
    def one_after_the_other(data: st.DataObject) -> None:
        ask(route, written(data.draw(allowed)))
        ask(route, written(data.draw(damaged(allowed))))

    one_after_the_other()


@pytest.mark.parametrize("route", WITH_BODY, ids=lambda route: route.path)
def test_whatever_is_sent_is_answered_as_the_document_says(route: ApiRoute) -> None:
    try_route(route, 8)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("route", WITH_BODY, ids=lambda route: route.path)
def test_whatever_is_sent_is_answered_as_the_document_says_many_times(route: ApiRoute) -> None:
    try_route(route, 300)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
async def test_every_route_answers_an_empty_request_as_documented(
    route: ApiRoute,
) -> None:
    for method in route.methods:
        headers = [*HEADERS, ADMIN]
        reply = await make_serving().call(method, route.path, headers=headers)
        judge(route, method, reply, b"")


async def test_a_probe_that_says_no_is_documented() -> None:
    serving = make_serving()
    serving.engine.die()
    for path in ("/health", "/ping", "/readyz"):
        reply = await serving.call("GET", path, headers=HEADERS)
        told = the_document()["paths"][path]["get"]["responses"][str(reply.status)]
        assert set(told["content"]) == ({"application/json"} if reply.body else set())
        assert "Retry-After" in told["headers"]
        assert "retry-after" in reply.headers


def test_generated_requests_get_through_often_enough() -> None:
    """The test above would be worth little if all that it makes were refused."""
    statuses: list[int] = []

    @settings(max_examples=40, suppress_health_check=CHECKS, database=None)
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        route = data.draw(st.sampled_from(WITH_BODY))
        body = written(data.draw(bodies(route.path)))

        async def run() -> int:
            serving = make_serving()
            serving.engine.tokens_per_step = 50
            return (await serving.ask("POST", route.path, body=body)).status

        statuses.append(asyncio.run(run()))

    collect()
    assert statuses.count(200) > len(statuses) // 10, json.dumps(statuses)
