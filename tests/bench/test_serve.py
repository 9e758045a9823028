"""`glimt bench serve` against a scripted server, whose times and troubles are known.

Timings are judged by the median of several requests and with room: the machine may be busy.
"""

import json
import socket
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from glimt.bench import settings
from glimt.bench.events import EventLog, RequestEvent
from glimt.bench.figures.summary import Summary, summarise
from glimt.bench.options import (
    DataOptions,
    LoadOptions,
    Options,
    OutputOptions,
    SamplingOptions,
    TargetOptions,
    WatchOptions,
)
from glimt.bench.run import Bench
from glimt.errors import BadSettings
from tests.support.bench_logs import MS
from tests.support.mock_server import MockServer

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def mock() -> Iterator[MockServer]:
    server = MockServer("--ttft-ms", "20", "--gap-ms", "2")
    yield server
    server.stop()


def options_for(mock: MockServer, script: dict[str, Any] | None = None, **load: Any) -> Options:
    """Four short chat requests at once, answered as the script says."""
    return Options(
        target=TargetOptions(
            backend="openai-chat", endpoint=CHAT, base_url=mock.url, skip_tokenizer_init=True
        ),
        load=LoadOptions(**({"num_prompts": 4} | load)),
        data=DataOptions(random_input_len=5, random_output_len=6),
        sampling=SamplingOptions(extra_body=json.dumps({"script": script or {}})),
        output=OutputOptions(disable_tqdm=True, save_detailed=True),
    )


def run(options: Options) -> tuple[EventLog, Summary]:
    settings.check(options)
    log = Bench(options, lambda _: None).run(options)
    return log, summarise(log, settings.question(options))


def ttft_ms(events: list[RequestEvent]) -> float:
    return statistics.median((event.chunk_ns[0] - event.start_ns) / 1e6 for event in events)


@pytest.mark.parametrize(
    "script",
    [
        {},
        {"role": "early"},
        {"role": "none"},
        {"reasoning_tokens": 4},
        {"reasoning_tokens": 6, "reasoning_field": "reasoning_content"},
        {"reasoning_tokens": 2, "reasoning_field": "both"},
        {"empty_every": 3},
        {"finish": "content"},
        {"finish": "last", "usage": "last"},
        {"usage": "continuous"},
        {"usage_delay_ms": 60},
        {"pings": True},
        {"crlf": True},
        {"split": 7, "exotic": True},
        {"headers_ms": 0},
    ],
    ids=lambda script: "-".join(f"{name}={value}" for name, value in script.items()) or "plain",
)
def test_whatever_form_an_answer_has_its_tokens_and_times_are_right(
    mock: MockServer, script: dict[str, Any]
) -> None:
    log, summary = run(options_for(mock, script))
    assert (summary.completed, summary.failed) == (4, 0), summary.errors
    assert summary.outputs.total_tokens == 24
    assert summary.outputs.short == 0
    assert len(summary.measured.itl) == 4 * 5
    # A role or the headers come at once, the usage 60 ms late; neither is a token. A timer may end
    # a moment early, and on a busy machine late: what is too early or too near is wrong.
    assert ttft_ms(log.requests) >= 18
    for event in log.requests:
        assert event.chunk_ns[5] - event.start_ns >= 27 * MS
        assert event.end_ns - event.chunk_ns[5] >= (script.get("usage_delay_ms", 0) - 2) * MS
    thought = script.get("reasoning_tokens", 0)
    assert all(event.chunk_kinds.count("r") == thought for event in log.requests)


def test_texts_arrive_whole(mock: MockServer) -> None:
    script = {"split": 3, "exotic": True, "reasoning_tokens": 2}
    log, _ = run(options_for(mock, script))
    for event in log.requests:
        assert event.reasoning == "naïve 日本語"
        assert event.content == "🙂 line\u2028separator naïve 日本語"


def test_several_tokens_in_each_chunk_are_all_counted(mock: MockServer) -> None:
    _, summary = run(options_for(mock, {"tokens_per_chunk": 4}))
    assert summary.outputs.total_tokens == 24
    assert summary.outputs.chunks == 8
    assert len(summary.measured.chunk_gap) == 4


@pytest.mark.parametrize(
    ("script", "failure", "words"),
    [
        ({"status": 503}, "http_503", "scripted failure"),
        ({"status": 400}, "http_400", "scripted failure"),
        ({"end": "error", "end_after": 2}, "error_event", "scripted trouble"),
        ({"end": "reset", "end_after": 2}, "broken", "closed"),
        ({"end": "close", "end_after": 2}, "broken", "closed"),
        ({"end": "close", "end_after": 0}, "broken", "without an answer"),
        ({"garbage_after": 2}, "broken", "unreadable message"),
        ({"finish_reason": None}, "truncated", "without a finish reason"),
        ({"tokens": 0}, "no_tokens", "no token"),
    ],
)
def test_each_failure_has_its_class_and_the_servers_words(
    mock: MockServer, script: dict[str, Any], failure: str, words: str
) -> None:
    _, summary = run(options_for(mock, script))
    assert summary.failures == {failure: 4}
    assert words in summary.errors[0]


def test_an_answer_that_never_ends_times_out(mock: MockServer) -> None:
    options = options_for(mock, {"end": "hang", "end_after": 3})
    options = replace(options, target=replace(options.target, request_timeout=0.3))
    log, summary = run(options)
    assert summary.failures == {"timeout": 4}
    assert all(len(event.chunk_ns) == 3 for event in log.requests)


def test_an_answer_cut_short_is_a_success_and_is_counted_as_short(mock: MockServer) -> None:
    _, summary = run(options_for(mock, {"tokens": 3, "finish_reason": "stop"}))
    assert (summary.completed, summary.outputs.short) == (4, 4)


def test_without_usage_chunks_are_counted_and_it_is_said(mock: MockServer) -> None:
    _, summary = run(options_for(mock, {"usage": "none"}))
    assert summary.outputs.total_tokens == 24
    assert summary.inputs.without_usage == 4


@pytest.mark.parametrize(
    ("backend", "endpoint"), [("openai", "/v1/completions"), ("openai-responses", "/v1/responses")]
)
def test_the_other_apis_are_measured_alike(mock: MockServer, backend: Any, endpoint: str) -> None:
    options = options_for(mock)
    target = replace(options.target, backend=backend, endpoint=endpoint)
    _, summary = run(replace(options, target=target))
    assert (summary.completed, summary.outputs.total_tokens) == (4, 24), summary.errors


def test_bodies_are_those_of_vllms_client(mock: MockServer) -> None:
    options = options_for(mock, num_prompts=1)
    options = replace(
        options,
        sampling=replace(options.sampling, temperature=0.5, top_k=7),
        data=replace(
            options.data, dataset_name="random-mm", random_mm_bucket_config="{(32,40,1):1}"
        ),
        target=replace(options.target, header=["X-A=b=c"], request_id_prefix="p-"),
    )
    run(options)
    request = mock.requests()[-1]
    body = request["body"]
    (message,) = body.pop("messages")
    text, image = message["content"]
    assert (message["role"], text["type"], image["type"]) == ("user", "text", "image_url")
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert body == {
        "model": "mock-model",
        "max_completion_tokens": 6,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_k": 7,
        "ignore_eos": True,
        "script": {},
    }
    assert request["headers"]["x-a"] == "b=c"
    assert request["headers"]["x-request-id"] == "p-0"
    assert "authorization" not in request["headers"]


def test_requests_leave_on_schedule(mock: MockServer) -> None:
    """Never before their time; how long after, on a machine with other work, is told as lag."""
    before = len(mock.requests())
    log, summary = run(options_for(mock, num_prompts=30, request_rate=60.0, burstiness=2.0))
    sent = [event.start_ns / 1e9 for event in log.requests]
    intended = [event.intended_ns / 1e9 for event in log.requests]
    assert intended == sorted(intended)
    assert intended[-1] == pytest.approx(0.5)
    lags = [s - i for s, i in zip(sent, intended, strict=True)]
    assert min(lags) >= 0
    assert summary.client.send_lag.count == 30
    assert 0 < summary.client.send_lag.mean <= statistics.mean(lags)
    assert len(mock.requests()) - before == 30


def test_never_more_than_the_limit_are_in_flight(mock: MockServer) -> None:
    log, summary = run(options_for(mock, num_prompts=12, max_concurrency=3))
    assert summary.peak_concurrency == 3
    assert summary.completed == 12
    # Nobody wants one before a place is free: there is no rate that it would be late for.
    ends = sorted(event.end_ns for event in log.requests)
    for end_ns, event in zip(ends, log.requests[3:], strict=False):
        assert end_ns <= event.intended_ns <= event.start_ns
    assert [event.index for event in log.requests] == list(range(12))


def test_waiting_for_the_limit_shows_when_there_is_a_rate(mock: MockServer) -> None:
    _, summary = run(options_for(mock, num_prompts=12, max_concurrency=1, request_rate=400.0))
    assert summary.peak_concurrency == 1
    assert summary.measured.queue.max() > 0.1
    assert summary.metrics["e2el_including_client_queue"].mean > summary.metrics["e2el"].mean


def test_connections_are_used_again(mock: MockServer) -> None:
    log, _ = run(options_for(mock, num_prompts=8, max_concurrency=2))
    assert sum(event.connected_ns is not None for event in log.requests) == 2


def test_conversations_carry_the_answers_along(mock: MockServer) -> None:
    before = len(mock.requests())
    options = options_for(mock, {"exotic": True}, num_prompts=2, request_rate=50.0)
    options = replace(options, data=replace(options.data, turns=3, think_time=0.01))
    log, summary = run(options)
    assert summary.completed == 6
    bodies = [request["body"]["messages"] for request in mock.requests()[before:]]
    assert sorted(len(messages) for messages in bodies) == [1, 1, 3, 3, 5, 5]
    longest = max(bodies, key=len)
    assert longest[1] == {"role": "assistant", "content": log.requests[0].content}
    assert longest[3]["role"] == "assistant"
    for conversation in (0, 1):
        turns = [event for event in log.requests if event.conversation == conversation]
        assert [event.turn for event in turns] == [0, 1, 2]
        for earlier, later in pairwise(turns):
            assert later.intended_ns > earlier.end_ns


def test_a_run_of_some_seconds_goes_round_the_prompts(mock: MockServer) -> None:
    log, summary = run(options_for(mock, num_prompts=3, max_concurrency=2, duration=0.4))
    assert summary.completed > 3
    assert [event.index for event in log.requests] == list(range(summary.completed))
    assert max(event.intended_ns for event in log.requests) < 0.4e9


def test_warm_ups_are_other_prompts_and_come_first(mock: MockServer) -> None:
    before = len(mock.requests())
    log, summary = run(options_for(mock, num_warmups=3))
    warm = [event for event in log.requests if event.phase == "warmup"]
    assert (len(warm), summary.completed) == (3, 4)
    assert max(event.end_ns for event in warm) <= 0
    texts = [json.dumps(request["body"]["messages"]) for request in mock.requests()[before:]]
    assert len(set(texts)) == 7


def test_warm_ups_may_go_over_into_the_run(mock: MockServer) -> None:
    options = options_for(mock, num_warmups=6, request_rate=100.0, warmup_overlap=True)
    log, summary = run(options)
    assert summary.completed == 4
    assert max(event.end_ns for event in log.requests if event.phase == "warmup") > 0


def test_probes_run_beside_the_load(mock: MockServer) -> None:
    script = {"ttft_ms": 300}
    log, summary = run(options_for(mock, script, probe_request_rate=40.0))
    assert any(event.phase == "probe" for event in log.requests)
    assert summary.completed == 4


def test_the_servers_metrics_are_read_during_the_run(mock: MockServer) -> None:
    options = options_for(mock, {"ttft_ms": 250})
    options = replace(options, watch=WatchOptions(server_metrics=True, profile=True))
    log, _ = run(options)
    assert "vllm:num_requests_running" in log.server[0].values
    assert not log.end.notes
    assert log.health


def test_a_profile_is_of_the_run_without_its_warm_ups(mock: MockServer) -> None:
    options = options_for(mock, num_prompts=2, num_warmups=3)
    before = len(mock.requests())
    run(replace(options, watch=WatchOptions(profile=True)))
    paths = [request["path"] for request in mock.requests()[before:]]
    kinds = ["profile" if "profile" in path else "answer" for path in paths if path != "/metrics"]
    assert kinds == ["answer"] * 3 + ["profile"] + ["answer"] * 2 + ["profile"]


def test_a_server_without_profiles_says_so_and_what_it_needs(mock: MockServer) -> None:
    options = options_for(mock, num_prompts=1)
    url = f"{options.target.base_url}/elsewhere"
    elsewhere = replace(options.target, base_url=url, model="m")
    log, _ = run(replace(options, target=elsewhere, watch=WatchOptions(profile=True)))
    assert log.end.notes[0].startswith("--profile: the server did not start it: 404")
    assert "--profiler-config" in log.end.notes[0]


def test_a_model_that_the_server_does_not_list_is_told_of(mock: MockServer) -> None:
    told: list[str] = []
    options = options_for(mock)
    Bench(options, told.append)
    assert told == []
    Bench(replace(options, target=replace(options.target, model="other")), told.append)
    assert told == ["note: the server lists mock-model, not other"]


def test_the_ready_check_waits_and_then_gives_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    target = TargetOptions(
        backend="openai-chat",
        endpoint=CHAT,
        port=port,
        model="m",
        skip_tokenizer_init=True,
        ready_check_timeout_sec=1,
    )
    options = Options(
        target=target, load=LoadOptions(num_prompts=1), output=OutputOptions(disable_tqdm=True)
    )
    with pytest.raises(BadSettings, match="not ready after 1 s"):
        run(options)
    without = replace(options, target=replace(target, ready_check_timeout_sec=0))
    with pytest.raises(BadSettings, match="there is no server"):
        run(without)


def test_a_custom_file_is_sent_as_it_is(mock: MockServer, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "<|assistant|> Ünïcode\u2028"}\n{"prompt": "b"}\n', "utf-8")
    before = len(mock.requests())
    options = options_for(mock, num_prompts=2)
    data = DataOptions(dataset_name="custom", dataset_path=str(path), disable_shuffle=True)
    run(replace(options, data=data))
    texts = {r["body"]["messages"][0]["content"][0]["text"] for r in mock.requests()[before:]}
    assert texts == {"<|assistant|> Ünïcode\u2028", "b"}
