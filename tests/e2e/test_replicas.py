"""Two replicas behind one address: they share the work, and one lives on when the other dies."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_failures import LONG, answers, post, status_of
from tests.parallel.test_ranks import picture
from tests.support.serving import Serving

LONG_ENOUGH = {**LONG, "max_tokens": 700}
FIXED = {"model": "tiny", "max_tokens": 24, "temperature": 0.0, "seed": 1}
QUESTIONS: list[Any] = [
    "Hi.",
    "Go on, tell me more about it.",
    [picture(0), {"type": "text", "text": "What is this?"}],
    [picture(1), {"type": "text", "text": "And this?"}],
    [picture(0), {"type": "text", "text": "And the first once more?"}],
]


@pytest.fixture(scope="module")
def both(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    flags = ["--data-parallel-size", "2", "--device", "cpu", "--dtype", "float32"]
    with Serving(checkpoint, *flags, log=log) as serving:
        yield serving


def text_of(serving: Serving, question: Any, copy: int | None = None) -> str:
    """The answer, of the copy that is asked for."""
    body = {**FIXED, "messages": [{"role": "user", "content": question}]}
    request = post(serving, body)
    if copy is not None:
        request.add_header("X-Data-Parallel-Rank", str(copy))
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def tokens_of_engines(serving: Serving) -> dict[str, float]:
    """Requests that each engine runs, by its label."""
    with urllib.request.urlopen(serving.url + "/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    rows = [line for line in lines if line.startswith("vllm:num_requests_running{")]
    return {row.split('engine="')[1].split('"')[0]: float(row.split()[-1]) for row in rows}


def test_all_requests_get_the_answers_of_one_engine_wherever_they_run(
    both: Serving, serving: Serving
) -> None:
    expected = [text_of(serving, question) for question in QUESTIONS]
    found = ["" for _ in QUESTIONS]

    def ask(place: int) -> None:
        found[place] = text_of(both, QUESTIONS[place])

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(QUESTIONS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_both_replicas_work_and_one_lives_on_when_the_other_dies(both: Serving) -> None:
    first, second = both.children_running("engine")
    with (
        urllib.request.urlopen(post(both, LONG_ENOUGH), timeout=60) as one,
        urllib.request.urlopen(post(both, LONG_ENOUGH), timeout=60) as other,
    ):
        one.readline()
        other.readline()
        both.wait_for(lambda: list(tokens_of_engines(both).values()) == [1.0, 1.0])
        first.kill()
        ends = []
        readers = [
            threading.Thread(target=lambda r=r: ends.append(r.read().decode()))
            for r in (one, other)
        ]
        for reader in readers:
            reader.start()
        both.wait_for(lambda: len(ends) == 1, 20)
        assert '"code":"not_ready"' in ends[0].replace(" ", "")
        assert status_of(both) == 200
        assert answers(both), "the other replica takes new requests"
        for reader in readers:
            reader.join(90)
    assert '"finish_reason":"length"' in ends[1].replace(" ", "")
    both.wait_for(lambda: "engine-0 is back" in both.log.read_text(), 60)
    assert second.is_running()
    assert len(both.children_running("engine")) == 2


def test_a_dead_server_is_replaced_and_both_replicas_stay(both: Serving) -> None:
    engines = {engine.pid for engine in both.children_running("engine")}
    both.child("server").kill()
    both.wait_for(lambda: answers(both), 60)
    assert {engine.pid for engine in both.children_running("engine")} == engines


@pytest.mark.slow
def test_replicas_of_two_ranks_with_whole_experts(
    checkpoint: Path, serving: Serving, tmp_path: Path
) -> None:
    flags = ["-dp", "2", "-tp", "2", "-ep", "--device", "cpu", "--dtype", "float32"]
    flags += ["--mm-encoder-tp-mode", "data", "--mm-processor-cache-type", "shm"]
    with Serving(checkpoint, *flags, log=tmp_path / "log.txt") as four:
        for question in QUESTIONS:
            assert text_of(four, question) == text_of(serving, question)


@pytest.mark.slow
def test_a_copy_behind_a_balancer_of_the_users_own_keeps_its_number(
    checkpoint: Path, tmp_path: Path
) -> None:
    flags = ["-dp", "4", "--data-parallel-hybrid-lb", "-dpl", "2", "-dpr", "2", "--device", "cpu"]
    with Serving(checkpoint, *flags, log=tmp_path / "log.txt") as last_two:
        assert answers(last_two)
        assert set(tokens_of_engines(last_two)) == {"2", "3"}
