"""Several server processes show their series as one server would."""

import os
from collections.abc import Iterator

import pytest

from glimt.arena import anonymous_file
from glimt.metric_sum import Ledger
from glimt.metrics import Metrics
from glimt.wire import EngineInfo, EngineStats

INFO = EngineInfo(
    max_model_len=64,
    vocab_size=8,
    num_pages=8,
    page_size=8,
    max_num_batched_tokens=64,
    max_num_seqs=4,
    max_image_tokens=16,
)


@pytest.fixture
def fd() -> Iterator[int]:
    fd = anonymous_file("test")
    os.ftruncate(fd, Ledger.nbytes(2))
    yield fd
    os.close(fd)


def server(fd: int, index: int, *, shares_media: bool = False) -> Metrics:
    metrics = Metrics(model_name="m")
    metrics.add_engine(0, INFO)
    metrics.add_up(Ledger(fd, index, 2), lambda: 0, shares_media=shares_media)
    return metrics


def test_a_server_of_one_copy_counts_all_under_the_number_of_that_copy() -> None:
    metrics = Metrics(model_name="m", first_copy=3)
    metrics.add_engine(3, INFO)
    metrics.observe_request(prompt_tokens=5, max_tokens=1, n=1)
    text = metrics.render().decode()
    assert 'vllm:prompt_tokens_total{engine="3",model_name="m"} 5.0' in text
    assert 'engine="0"' not in text


def value(metrics: Metrics, name: str) -> float:
    """The sum over all labels."""
    lines = metrics.render().decode().splitlines()
    values = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{")]
    assert values, name
    return sum(values)


def answer(metrics: Metrics, *, tokens: int) -> None:
    metrics.observe_request(prompt_tokens=tokens, max_tokens=8, n=1)
    metrics.time_to_first_token.observe(0.03)
    metrics.http.observe(
        handler="/x", method="GET", status=200, seconds=0.2, request_bytes=1, response_bytes=2
    )


def test_whoever_is_asked_adds_up_what_all_have_counted(fd: int) -> None:
    first, second = server(fd, 0), server(fd, 1)
    answer(first, tokens=5)
    answer(second, tokens=7)
    answer(second, tokens=1)
    second.publish()
    for asked in (first, second):
        assert value(asked, "vllm:prompt_tokens_total") == 13
        assert value(asked, "http_requests_total") == 3
        assert value(asked, "vllm:time_to_first_token_seconds_count") == 3
        bucket = 'vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"}'
        assert f"{bucket} 3.0" in asked.render().decode()


def test_no_counter_falls_when_the_next_scrape_meets_another_server(fd: int) -> None:
    first, second = server(fd, 0), server(fd, 1)
    seen = 0.0
    for turn in range(6):
        answer(first, tokens=2)
        answer(second, tokens=3)
        now = value((first, second)[turn % 2], "vllm:prompt_tokens_total")
        assert now >= seen
        seen = now


def test_a_successor_counts_on_from_what_the_dead_server_had_published(fd: int) -> None:
    first, second = server(fd, 0), server(fd, 1)
    answer(first, tokens=5)
    first.publish()
    assert value(second, "vllm:prompt_tokens_total") == 5, "the dead server's counts stay"
    successor = server(fd, 0)
    assert value(successor, "vllm:prompt_tokens_total") == 5
    answer(successor, tokens=1)
    answer(second, tokens=1)
    assert value(second, "vllm:prompt_tokens_total") == 6
    assert value(successor, "vllm:prompt_tokens_total") == 7
    assert value(server(fd, 0), "http_requests_total") == 3


def test_what_engines_tell_all_servers_is_counted_once(fd: int) -> None:
    first, second = server(fd, 0), server(fd, 1)
    stats = EngineStats(step=1, num_running=2, preemptions=3, step_tokens=9, num_pages=8)
    for each in (first, second):
        each.observe_engine(0, stats)
        each.publish()
    for asked in (first, second):
        assert value(asked, "vllm:num_requests_running") == 2
        assert value(asked, "vllm:num_preemptions_total") == 3
        assert value(asked, "vllm:iteration_tokens_total_sum") == 9


@pytest.mark.parametrize("shares_media", [True, False])
def test_gauges_of_servers_add_up_and_one_common_memory_is_shown_once(
    fd: int, shares_media: bool
) -> None:
    first, second = (server(fd, index, shares_media=shares_media) for index in range(2))
    for each in (first, second):
        each.media.watch_memory(lambda: 100, lambda: 4)
        each.hold(1)
    first.publish()
    assert value(second, "glimt:num_requests_preparing") == 2
    free = value(second, "glimt:media_memory_free_bytes")
    assert free == (100 if shares_media else 200)


def test_a_server_killed_while_it_writes_leaves_its_last_text(fd: int) -> None:
    writer, reader = Ledger(fd, 1, 2), Ledger(fd, 0, 2)
    assert reader.read(1) == b""
    writer.write(b"first")
    writer.write(b"second")
    part = Ledger.nbytes(2) // 2
    os.pwrite(fd, b"torn", part + 4096 + (part - 4096) // 2)  # the slot that does not hold
    assert reader.read(1) == b"second"
    with pytest.raises(ValueError, match="do not fit"):
        writer.write(bytes(part))
    assert reader.read(1) == b"second"
