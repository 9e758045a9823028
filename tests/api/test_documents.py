"""What the server says of itself: models, version, the OpenAPI document, metrics, the log."""

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glimt
from glimt.api.completion import ChatChunk, ChatCompletion
from glimt.api.routes import ROUTES
from glimt.log import escaped, set_up
from glimt.metrics import Metrics
from glimt.wire import EngineStats, ExpertStats, PageLife
from tests.support.http_half import INFO, MODEL, Serving, spoken

HOST = [(b"host", b"localhost")]


async def document(**state: Any) -> Any:
    headers = [*HOST, (b"authorization", b"Bearer k")]
    return (await Serving(**state).ask("GET", "/openapi.json", headers=headers)).json()


async def test_the_openapi_document_has_every_route_and_method() -> None:
    paths = (await document(admin_keys=("a",)))["paths"]
    assert set(paths) == {route.path for route in ROUTES}
    for route in ROUTES:
        assert set(paths[route.path]) == {method.lower() for method in route.methods}
    identities = [each["operationId"] for path in paths.values() for each in path.values()]
    assert len(set(identities)) == len(identities)


async def test_every_reference_in_the_document_leads_somewhere() -> None:
    whole = await document(api_keys=("k",))
    assert whole["openapi"].startswith("3.1")
    schemas = whole["components"]["schemas"]
    references = re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(whole))
    assert references
    assert set(references) <= set(schemas)
    assert {"ChatRequest", "ChatCompletion", "ChatChunk", "ErrorAnswer"} <= set(schemas)
    paths = whole["paths"]
    assert paths["/v1/models"]["get"]["security"] == [{"key": []}]
    assert "security" not in paths["/health"]["get"]
    assert schemas["ChatRequest"]["properties"]["n"]["anyOf"][0]["maximum"] == 16


async def test_answers_have_the_documented_shapes() -> None:
    serving = Serving(spoken("<think>a</think>b"), parse_reasoning=True)
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 1, "return_token_ids": True}
    msgspec.json.decode((await serving.chat(**fields)).body, type=ChatCompletion)
    options = {"include_usage": True, "continuous_usage_stats": True}
    reply = await serving.chat(stream=True, stream_options=options, **fields)
    for event in reply.events[:-1]:
        msgspec.convert(event, ChatChunk)


async def test_models_are_listed_with_their_limits() -> None:
    serving = Serving()
    cards = (await serving.ask("GET", "/v1/models")).json()["data"]
    assert [card["id"] for card in cards] == [MODEL, "alias"]
    assert cards[0]["max_model_len"] == cards[0]["limits"]["max_model_len"] == INFO.max_model_len
    assert cards[0]["root"] == "/models/tiny"
    serving.engine.die()
    reply = await serving.ask("GET", "/v1/models")
    assert (reply.status, reply.json()["data"][0]["limits"]) == (200, None)


async def test_the_index_names_the_routes() -> None:
    reply = await Serving(admin_keys=("a",)).ask("GET", "/", headers=HOST)
    assert set(reply.json()["routes"]) == {route.path for route in ROUTES}


NAMES = re.findall(
    r"\w+",
    """
    num_requests_running num_requests_waiting kv_cache_usage_perc prefix_cache_queries_total
    prefix_cache_hits_total mm_cache_queries_total mm_cache_hits_total num_preemptions_total
    prompt_tokens_total generation_tokens_total prompt_tokens_cached_total
    request_success_total request_prompt_tokens_bucket request_generation_tokens_sum
    request_params_n_count request_params_max_tokens_count
    request_max_num_generation_tokens_count iteration_tokens_total_bucket
    time_to_first_token_seconds_bucket inter_token_latency_seconds_bucket
    request_time_per_output_token_seconds_bucket e2e_request_latency_seconds_count
    request_queue_time_seconds_sum request_inference_time_seconds_sum
    request_prefill_time_seconds_sum request_decode_time_seconds_sum
    request_prefill_kv_computed_tokens_count cache_config_info gpu_cache_usage_perc
    gpu_prefix_cache_hits_total gpu_prefix_cache_queries_total gpu_prefix_cache_hit_rate
    time_per_output_token_seconds_bucket num_requests_swapped cpu_cache_usage_perc
    num_requests_waiting_by_reason engine_sleep_state prompt_tokens_by_source_total
    external_prefix_cache_queries_total external_prefix_cache_hits_total
    admission_rejections_total corrupted_requests_total kv_block_lifetime_seconds_bucket
    estimated_flops_per_gpu_total estimated_read_bytes_per_gpu_total
    estimated_write_bytes_per_gpu_total kv_block_idle_before_evict_seconds_count
    kv_block_reuse_gap_seconds_sum
    """,
)


def samples(text: str) -> dict[str, float]:
    """Series by name without labels; sums over them."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name = re.split(r"[{ ]", line, maxsplit=1)[0]
            values[name] = values.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
    return values


async def test_the_metrics_have_the_names_that_others_rely_on() -> None:
    serving = Serving(spoken("Hello, world!"))
    await serving.chat(n=2, stream=True)
    for path in ("/metrics", "/metrics/"):
        reply = await serving.ask("GET", path, headers=HOST)
        assert reply.headers["content-type"].startswith("text/plain")
        values = samples(reply.body.decode())
        assert {f"vllm:{name}" for name in NAMES} <= set(values)
    num_tokens = len(serving.answers[0])
    assert values["vllm:generation_tokens_total"] == 2 * num_tokens
    assert values["vllm:prompt_tokens_total"] == 7
    assert values["vllm:time_to_first_token_seconds_count"] == 2
    assert values["vllm:inter_token_latency_seconds_count"] == 2 * (num_tokens - 1)
    assert values["vllm:inter_token_latency_seconds_bucket"] > 0
    assert values["vllm:request_success_total"] == 2
    assert values["vllm:request_max_num_generation_tokens_sum"] == num_tokens
    assert values["glimt:num_requests_preparing"] == 0
    assert not [name for name in values if name.endswith("_created")]


async def test_nothing_a_client_says_makes_a_series() -> None:
    serving = Serving()
    seen = set()
    for i in range(20):
        await serving.chat(model=f"model-{i}")
        await serving.ask("GET", f"/path-{i}")
        await serving.ask("GET", f"/v1/models/model-{i}", headers=HOST)
        await serving.ask(f"VERB{i}", "/version", headers=HOST)
        seen.add(serving.metrics.render().count(b"\n"))
    assert len(seen) == 1


async def test_http_requests_are_counted_by_route() -> None:
    serving = Serving()
    await serving.chat()
    await serving.chat(n=0)
    await serving.ask("GET", "/nowhere", headers=HOST)
    await serving.ask("GET", "/v1/models/tiny", headers=HOST)
    await serving.ask("GET", "/health", headers=HOST)
    text = serving.metrics.render().decode()
    counted = re.findall(r"^http_requests_total\{(.*)\} 1.0$", text, re.MULTILINE)
    assert sorted(counted) == [
        'handler="/v1/chat/completions",method="POST",status="2xx"',
        'handler="/v1/chat/completions",method="POST",status="4xx"',
        'handler="/v1/models/{model}",method="GET",status="2xx"',
        'handler="none",method="GET",status="4xx"',
    ]
    values = samples(text)
    assert values["http_request_size_bytes_sum"] > 100
    assert values["http_response_size_bytes_count"] == 4
    assert values["http_request_duration_seconds_count"] == 4
    assert values["http_request_duration_highr_seconds_count"] == 4
    assert values["process_resident_memory_bytes"] > 10**6
    assert "python_gc_collections_total" in values


async def test_requests_whose_prompts_are_being_made_wait_too() -> None:
    serving = Serving()
    with serving.client.preparing(3):
        text = serving.metrics.render().decode()
    assert (
        'num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="deferred"} 3.0' in text
    )
    assert samples(text)["vllm:num_requests_waiting"] == 3


def test_the_cache_config_shows_the_settings() -> None:
    metrics = Metrics(model_name="m", cache_config={"gpu_memory_utilization": "0.92"})
    metrics.add_engine(0, INFO)
    metrics.set_limits({"max_body_bytes": 64})
    metrics.media.watch_memory(lambda: 7, lambda: 2)
    text = metrics.render().decode()
    (line,) = [line for line in text.splitlines() if line.startswith("vllm:cache_config_info")]
    for label in ('block_size="16"', 'num_gpu_blocks="256"', 'gpu_memory_utilization="0.92"'):
        assert label in line
    assert 'glimt:limit{limit="max_body_bytes"} 64.0' in text
    assert samples(text)["glimt:media_memory_free_bytes"] == 7


DASHBOARD = Path(glimt.__file__).parents[1] / "deploy/grafana/glimt.json"


async def test_the_dashboard_asks_for_series_and_labels_that_exist() -> None:
    serving = Serving()
    await serving.chat()
    chosen = ExpertStats((3, 1), (4, 0), {1: 1.5}, {1: 2.0})
    serving.engine.deliver(stats=EngineStats(experts=chosen))
    text = serving.metrics.render().decode()
    labels: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, rest = line.partition("{")
            found = re.findall(r'(\w+)="', rest.rpartition("}")[0])
            labels.setdefault(name.split(" ")[0], set()).update(found)
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert len(asked) > 40
    for expression in asked:
        names = re.findall(r"\b(?:vllm:|glimt:|http_|process_)\w+", expression)
        assert names, expression
        for name in names:
            assert name in labels, f"{name} is not in /metrics"
            wanted = {*re.findall(r"(\w+)=~", expression)}
            for group in re.findall(r"by \(([^)]*)\)", expression):
                wanted |= {each.strip() for each in group.split(",")}
            assert wanted <= labels[name], f"{expression}: {wanted - labels[name]}"


def test_counters_survive_an_engine_that_is_replaced() -> None:
    metrics = Metrics(model_name="m")
    metrics.add_engine(0, INFO)
    metrics.observe_engine(0, EngineStats(step=5, preemptions=3, num_running=2))
    metrics.remove_engine(0)
    metrics.add_engine(0, INFO)
    metrics.observe_engine(0, EngineStats(step=1, preemptions=1))
    values = samples(metrics.render().decode())
    assert values["vllm:num_preemptions_total"] == 4
    assert values["vllm:num_requests_running"] == 0


def test_the_summary_is_silent_when_nothing_happens() -> None:
    metrics = Metrics(model_name="m")
    assert metrics.summary() is None
    metrics.observe_tokens(5)
    assert (metrics.summary() or {})["generated_tokens"] == 5
    assert metrics.summary() is None


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root, ours = logging.getLogger(), logging.getLogger("glimt")
    before = list(root.handlers), root.level, ours.level
    yield io.StringIO()
    root.handlers[:], root.level, ours.level = before


async def test_each_request_is_one_line_without_its_text(stream: io.StringIO) -> None:
    set_up("info", as_json=True, stream=stream, name="server")
    serving = Serving(spoken("secret answer"))
    await serving.chat(messages=[{"role": "user", "content": "secret question"}], extra=1)
    await serving.ask("GET", "/health")
    (line,) = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert (fields["status"], fields["process"]) == (200, "server")
    assert fields["completion_tokens"] == len(serving.answers[0])
    assert (fields["finish_reason"], fields["ignored_fields"]) == ("stop", "extra")
    assert "secret" not in line


async def test_lines_of_finished_requests_can_be_turned_off(stream: io.StringIO) -> None:
    set_up("info", as_json=True, stream=stream)
    await Serving(log_access=False).chat()
    quiet = Serving(quiet_paths=frozenset({"/version"}))
    await quiet.ask("GET", "/version")
    assert stream.getvalue() == ""
    await quiet.chat()
    dead = Serving(log_access=False)
    dead.engine.die()
    await dead.chat()
    statuses = [json.loads(line)["status"] for line in stream.getvalue().splitlines()]
    assert statuses == [200, 503], "failures keep their lines"


async def test_a_probe_that_finds_nothing_ready_has_no_line(stream: io.StringIO) -> None:
    set_up("info", as_json=True, stream=stream)
    serving = Serving()
    serving.engine.die()
    assert (await serving.ask("GET", "/health")).status == 503
    assert stream.getvalue() == "", "an orchestrator asks every few seconds while weights load"
    await serving.chat()
    assert json.loads(stream.getvalue())["status"] == 503


async def test_a_request_that_starts_is_logged_when_asked_for(stream: io.StringIO) -> None:
    set_up("info", as_json=True, stream=stream)
    await Serving(log_requests=True).chat(seed=7, stop="secret")
    started, finished = map(json.loads, stream.getvalue().splitlines())
    assert started["id"] == finished["id"]
    assert json.loads(started["sampling"])["seed"] == 7
    assert "secret" not in stream.getvalue()


@pytest.mark.parametrize("as_json", [False, True])
async def test_no_client_forges_a_log_line(stream: io.StringIO, as_json: bool) -> None:
    set_up("info", as_json=as_json, stream=stream)
    await Serving().ask("GET", "/a\nINFO forged\x1b[31m\u2028x", headers=HOST)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "\u2028" not in text


@given(st.text())
def test_escaped_text_is_one_printable_line(text: str) -> None:
    line = escaped(text, 10_000)
    assert len(line.splitlines()) <= 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", line)


def test_a_traceback_is_logged_line_by_line(stream: io.StringIO) -> None:
    set_up("debug", as_json=False, stream=stream)
    try:
        raise ValueError("bad\x1b[31m")
    except ValueError:
        logging.getLogger("glimt.x").exception("it\nfailed")
    head, *rest = stream.getvalue().splitlines()
    assert head.endswith(r"ERROR glimt.x it\x0afailed")
    assert all(line.startswith("    ") for line in rest)
    assert rest[-1].endswith(r"bad\x1b[31m")


async def test_the_lives_of_pages_are_counted_as_engines_tell_them() -> None:
    serving = Serving()
    life = PageLife(12.0, 5.0, (3.0, 4.0))
    serving.engine.deliver(stats=EngineStats(step=1, page_lives=(life, life)))
    values = samples((await serving.ask("GET", "/metrics", headers=HOST)).body.decode())
    assert values["vllm:kv_block_lifetime_seconds_sum"] == 24.0
    assert values["vllm:kv_block_idle_before_evict_seconds_count"] == 2
    assert values["vllm:kv_block_reuse_gap_seconds_count"] == 4
