"""A span for each request, and a collector that gets them, is slow, or is not there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession, web

from glimt.config import ServerSettings, Settings
from glimt.config_check import check
from glimt.errors import BadSettings
from glimt.traces import MAX_WAITING, Span, TraceExporter, parent_of
from tests.support.http_half import HEADERS, MODEL, Serving, chat_body

PARENT = b"00-" + b"a" * 32 + b"-" + b"b" * 16


class Spans(list[Span]):
    def add(self, span: Span) -> None:
        self.append(span)


def span(number: int = 0) -> Span:
    return Span(
        trace_id="1" * 32,
        span_id=f"{number:016x}",
        parent_id=None,
        name="POST /x",
        start_ns=1,
        end_ns=2,
        is_error=False,
        attributes={"a": "text", "b": 3, "c": 0.5, "d": None},
    )


async def test_a_request_is_a_span_in_the_trace_of_its_sender() -> None:
    spans = Spans()
    serving = Serving(tracer=spans)
    headers = [*HEADERS, (b"traceparent", PARENT + b"-01")]
    await serving.ask(body=chat_body(), headers=headers)
    (one,) = spans
    assert (one.trace_id, one.parent_id) == ("a" * 32, "b" * 16)
    assert len(one.span_id) == 16
    assert one.name == "POST /v1/chat/completions"
    assert one.end_ns >= one.start_ns
    shown = one.attributes
    assert shown["gen_ai.response.model"] == MODEL
    assert shown["gen_ai.usage.completion_tokens"] == len(serving.answers[0])
    assert shown["gen_ai.response.finish_reasons"] == "stop"
    assert shown["gen_ai.latency.time_to_first_token"] is not None
    assert shown["gen_ai.latency.time_in_queue"] is not None
    assert shown["http.response.status_code"] == 200


async def test_requests_without_a_sender_begin_traces_of_their_own() -> None:
    spans = Spans()
    serving = Serving(tracer=spans)
    for _ in range(2):
        await serving.chat(n=0)
    assert len({each.trace_id for each in spans}) == 2
    assert [each.parent_id for each in spans] == [None, None]
    assert spans[0].attributes["error.type"] == "invalid_request"
    assert not spans[0].is_error
    serving.engine.die()
    await serving.chat()
    assert spans[2].is_error


async def test_what_is_not_sampled_and_probes_are_not_traced() -> None:
    spans = Spans()
    serving = Serving(tracer=spans)
    await serving.ask(body=chat_body(), headers=[*HEADERS, (b"traceparent", PARENT + b"-00")])
    await serving.ask("GET", "/health")
    await serving.ask("GET", "/metrics")
    assert spans == []


@pytest.mark.parametrize(
    "value",
    [b"", b"x", PARENT, PARENT + b"-0g", b"00-" + b"0" * 32 + b"-" + b"b" * 16 + b"-01", b"\xff"],
)
def test_a_sender_that_cannot_be_read_is_none(value: bytes) -> None:
    assert parent_of([(b"traceparent", value)]) is None
    assert parent_of([(b"traceparent", PARENT + b"-01")] * 2) is None


@contextlib.asynccontextmanager
async def collector(status: int = 200) -> AsyncIterator[tuple[str, list[Any]]]:
    got: list[Any] = []

    async def take(request: web.Request) -> web.Response:
        got.append(await request.json())
        return web.Response(status=status)

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    try:
        yield f"http://127.0.0.1:{port}/v1/traces", got
    finally:
        await runner.cleanup()


async def test_a_collector_gets_otlp_in_json() -> None:
    async with collector() as (endpoint, got), ClientSession() as session:
        exporter = TraceExporter(endpoint, {"service.name": "glimt"}, clock=lambda: 0.0)
        for number in range(3):
            exporter.add(span(number))
        await exporter.flush(session)
    (resource,) = got[0]["resourceSpans"]
    assert resource["resource"]["attributes"] == [
        {"key": "service.name", "value": {"stringValue": "glimt"}}
    ]
    (scope,) = resource["scopeSpans"]
    assert [each["spanId"] for each in scope["spans"]] == [f"{i:016x}" for i in range(3)]
    assert scope["spans"][0]["attributes"] == [
        {"key": "a", "value": {"stringValue": "text"}},
        {"key": "b", "value": {"intValue": "3"}},
        {"key": "c", "value": {"doubleValue": 0.5}},
    ]
    assert scope["spans"][0]["startTimeUnixNano"] == "1"
    assert exporter.num_dropped == 0


async def test_what_waits_at_the_end_is_still_sent() -> None:
    async with collector() as (endpoint, got):
        exporter = TraceExporter(endpoint, {}, clock=lambda: 0.0)
        task = asyncio.create_task(exporter.run())
        await asyncio.sleep(0)
        exporter.add(span())
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert len(got) == 1


async def test_a_collector_that_is_gone_costs_spans_and_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with collector(status=503) as (endpoint, _), ClientSession() as session:
        for where in (endpoint, "http://127.0.0.1:1/v1/traces"):
            caplog.clear()
            exporter = TraceExporter(where, {}, clock=lambda: 5.0)
            for _ in range(2):
                exporter.add(span())
                await exporter.flush(session)
            assert exporter.num_dropped == 2
            assert len([r for r in caplog.records if "traces are lost" in r.message]) == 1


def test_waiting_spans_are_bounded() -> None:
    exporter = TraceExporter("http://x", {}, clock=lambda: 0.0)
    for number in range(MAX_WAITING + 7):
        exporter.add(span(number))
    assert exporter.num_dropped == 7


def test_a_collector_that_speaks_something_else_is_refused_at_start() -> None:
    server = ServerSettings(otlp_traces_endpoint="grpc://localhost:4317")
    with pytest.raises(BadSettings, match="4318"):
        check(Settings(model="m", server=server))
