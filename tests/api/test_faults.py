"""When something goes wrong: clients that leave, engines that die, too much, and bugs."""

import asyncio
import contextlib
import logging
from typing import Any

import pytest

from glimt.api.state import HttpLimits
from glimt.errors import BadMedia, MediaFetchFailed
from tests.support.fake_engine import Running
from tests.support.http_half import INFO, MODEL, Reply, Serving, chat_body, spoken

IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": "data:a"}]}]


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def waiting(serving: Serving, **fields: Any) -> Any:
    """A request that the engine has taken and not begun; (task, event: the client leaves)."""
    leave = asyncio.Event()
    task = asyncio.create_task(serving.call(body=chat_body(**fields), leave=leave))
    await turns()
    yield task, leave
    await asyncio.wait_for(task, 5)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_steps", [0, 3])
async def test_a_client_that_leaves_is_aborted_before_the_next_step(
    stream: bool, num_steps: int
) -> None:
    serving = Serving(spoken("a b c d e f g h"))
    async with waiting(serving, stream=stream, n=2, messages=IMAGE) as (_, leave):
        for _ in range(num_steps):
            serving.engine.step()
            await turns()
        leave.set()
        await turns()
        assert sorted(serving.engine.aborts) == [s.request_id for s in serving.engine.submits]
        assert [lease.released for lease in serving.media.leases] == [0]
        serving.engine.step()
        assert [lease.released for lease in serving.media.leases] == [1]
    assert serving.client.num_open == 0
    assert 'http_responses_total{engine="0",model_name="tiny",status="499"} 1.0' in metrics(serving)
    assert success(serving, "abort") == 2


def metrics(serving: Serving) -> str:
    return serving.metrics.render().decode()


def success(serving: Serving, reason: str) -> float:
    start = f'vllm:request_success_total{{engine="0",finished_reason="{reason}"'
    (line,) = [line for line in metrics(serving).splitlines() if line.startswith(start)]
    return float(line.split()[-1])


async def test_a_client_that_leaves_while_its_image_is_prepared_leaves_nothing() -> None:
    serving = Serving()
    started = asyncio.Event()

    async def prepare(source: Any) -> Any:
        started.set()
        await asyncio.Event().wait()

    serving.media.prepare = prepare  # type: ignore[method-assign]
    async with waiting(serving, messages=IMAGE) as (_, leave):
        assert started.is_set()
        assert serving.client.num_preparing == 1
        leave.set()
    assert serving.client.num_preparing == 0
    assert not serving.engine.submits


async def test_no_task_is_left_behind() -> None:
    serving = Serving(spoken("a b c"))
    before = len(asyncio.all_tasks())
    for _ in range(20):
        async with waiting(serving, stream=True) as (_, leave):
            serving.engine.step()
            leave.set()
        await serving.chat()
    await turns()
    assert len(asyncio.all_tasks()) == before
    assert serving.client.num_open == 0


async def test_somebody_elses_cancellation_is_not_the_clients() -> None:
    serving = Serving()
    task = asyncio.create_task(serving.call(body=chat_body()))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(serving.engine.aborts) == 1


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("stalls_at_the_last_write", [False, True])
async def test_a_reader_that_takes_nothing_is_dropped(
    is_stream: bool, stalls_at_the_last_write: bool
) -> None:
    serving = Serving(spoken("a b c d"), limits=HttpLimits(max_stalled_s=0.05))
    stuck = asyncio.Event()

    async def receive() -> Any:
        if first:
            return first.pop()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        is_body = message["type"] == "http.response.body"
        if is_body and not (stalls_at_the_last_write and message["more_body"]):
            stuck.set()
            await asyncio.Event().wait()

    first = [{"type": "http.request", "body": chat_body(stream=is_stream), "more_body": False}]
    headers = [(b"content-type", b"application/json"), (b"content-length", b"1")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    task = asyncio.create_task(serving.app(scope | {"query_string": b""}, receive, send))
    while not stuck.is_set():
        serving.engine.step()
        await turns()
    serving.clock.now_s += 1
    await asyncio.wait_for(task, 10)
    assert serving.client.num_open == 0 or serving.engine.aborts


async def test_an_engine_that_dies_before_the_first_byte_is_a_503() -> None:
    serving = Serving()
    async with waiting(serving, stream=True) as (task, _):
        serving.engine.die("the engine died; it is being restarted")
    reply: Reply = task.result()
    assert (reply.status, reply.error["code"]) == (503, "not_ready")
    assert int(reply.headers["retry-after"]) >= 1
    assert (await serving.chat()).status == 503
    assert (await serving.ask("GET", "/health")).status == 503
    assert (await serving.ask("GET", "/readyz")).json() == {"status": "the engine is not ready"}
    assert (await serving.ask("GET", "/livez")).status == 200
    serving.engine.start()
    assert (await serving.chat()).status == 200


async def test_an_engine_that_dies_mid_stream_ends_it_with_an_error_and_no_finish() -> None:
    serving = Serving(spoken("a b c d"))
    async with waiting(serving, stream=True, stream_options={"include_usage": True}) as (task, _):
        serving.engine.step()
        await turns()
        serving.engine.die("the engine died; it is being restarted")
    reply: Reply = task.result()
    *deltas, error, done = reply.events
    assert reply.status == 200
    assert (error["error"]["code"], done) == ("not_ready", "[DONE]")
    assert all(each["finish_reason"] is None for d in deltas for each in d["choices"])
    assert success(serving, "error") == 1


@pytest.mark.parametrize("code", ["step_failed", "numerical_error"])
async def test_a_failed_step_is_a_500_that_is_not_repeated(code: str) -> None:
    serving = Serving()
    async with waiting(serving) as (task, _):
        serving.engine.fail(serving.engine.submits[0].request_id, code, "the step failed")
    reply: Reply = task.result()
    assert (reply.status, reply.error["code"]) == (500, code)
    assert reply.headers["x-should-retry"] == "false"
    counted = f'vllm:corrupted_requests_total{{engine="0",model_name="{MODEL}"}} '
    assert counted + ("1.0" if code == "numerical_error" else "0.0") in metrics(serving)


async def test_excess_is_a_429_that_says_when_to_come_back() -> None:
    serving = Serving(max_waiting=0)
    tasks = [asyncio.create_task(serving.call(body=chat_body())) for _ in range(INFO.max_num_seqs)]
    await turns()
    try:
        reply = await serving.call(body=chat_body(messages=IMAGE))
        assert (reply.status, reply.error["type"]) == (429, "rate_limit_error")
        assert reply.error["code"] == "overloaded"
        assert 1 <= int(reply.headers["retry-after"]) <= 40
        assert not serving.media.leases, "refused before any image is fetched"
        assert (await serving.call("GET", "/readyz")).status == 200, "full is not unready"
    finally:
        async with Running(serving.engine):
            assert {reply.status for reply in await asyncio.gather(*tasks)} == {200}
    assert "vllm:admission_rejections_total" in metrics(serving)
    assert (await serving.chat()).status == 200


async def test_a_draining_server_takes_nothing_new_and_finishes_what_runs() -> None:
    serving = Serving()
    async with waiting(serving) as (task, _):
        serving.lifecycle.is_draining = True
        reply = await serving.call(body=chat_body())
        assert (reply.status, reply.headers["connection"]) == (503, "close")
        assert "retry-after" in reply.headers
        ready = await serving.call("GET", "/readyz")
        assert ready.json() == {"status": "draining"}
        assert ready.headers["content-type"] == "application/json"
        for path in ("/readyz", "/health", "/ping"):
            probe = await serving.call("GET", path)
            assert (probe.status, probe.headers["retry-after"]) == (503, "5")
        async with Running(serving.engine):
            await serving.client.drain()
            assert (await task).status == 200


async def test_a_shutdown_that_waits_no_longer_ends_streams_with_an_error() -> None:
    serving = Serving(spoken("a b c"))
    async with waiting(serving, stream=True) as (task, _):
        serving.engine.step()
        await turns()
        serving.client.end_all("the server is shutting down")
    assert task.result().events[-2]["error"]["message"] == "the server is shutting down"


async def test_an_engine_that_says_nothing_turns_readiness_red_and_much_later_liveness() -> None:
    serving = Serving()
    statuses = []
    for silence_s in (20.0, 40.0, 200.0):
        serving.clock.now_s = 1000.0 + silence_s
        probes = [await serving.ask("GET", path) for path in ("/readyz", "/livez")]
        statuses.append([probe.status for probe in probes])
        for probe in probes:
            assert ("retry-after" in probe.headers) == (probe.status == 503)
    assert statuses == [[200, 200], [503, 200], [503, 503]]
    assert "said nothing for 200 s" in (await serving.ask("GET", "/livez")).json()["status"]


@pytest.mark.parametrize("kind", [BadMedia, MediaFetchFailed])
async def test_a_medium_that_fails_is_a_400_that_names_its_part(kind: Any) -> None:
    serving = Serving()
    path = "messages[0].content[0].image_url"
    serving.media.failures["data:a"] = kind("no", param=path)
    reply = await serving.chat(messages=IMAGE)
    assert (reply.status, reply.error["param"]) == (400, path)
    assert reply.error["code"] == kind.code


async def test_a_bug_is_a_500_that_tells_nothing_but_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    serving = Serving()
    serving.media.failures["data:a"] = ValueError("secret /path/x.py 0xdeadbeef")
    with caplog.at_level(logging.ERROR, "glimt"):
        reply = await serving.chat(messages=IMAGE)
    assert (reply.status, reply.error["code"]) == (500, "internal_error")
    assert "secret" not in reply.body.decode()
    assert reply.headers["x-should-retry"] == "false"
    (record,) = [record for record in caplog.records if record.exc_info]
    (identity,) = [word for word in reply.error["message"].split() if len(word) == 32]
    assert identity in record.getMessage()


async def test_a_bug_mid_stream_is_an_error_event(caplog: pytest.LogCaptureFixture) -> None:
    serving = Serving(spoken("a b"))
    async with waiting(serving, stream=True) as (task, _):
        serving.engine.step()
        await turns()
        serving.state.metrics.observe_tokens = None  # type: ignore[assignment, method-assign]
        serving.engine.step()
    error = task.result().events[-2]["error"]
    assert error["code"] == "internal_error"
    assert serving.engine.aborts
