"""Replicas that share experts, as real processes: they answer, sleep, die, come back together."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_failures import SHORT, answers, folders_of, post
from tests.e2e.test_ranks import metrics_of, order
from tests.e2e.test_replicas import LONG_ENOUGH, QUESTIONS, text_of, tokens_of_engines
from tests.support.serving import Serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FLAGS = ["-dp", "2", "-ep", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def shared(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    flags = [*FLAGS, "--admin-key", "root", "--enable-expert-load-metrics"]
    with Serving(checkpoint, *flags, log=log) as serving:
        yield serving


def idle_steps(serving: Serving) -> float:
    """That replicas took for each other, those of all."""
    lines = metrics_of(serving).splitlines()
    rows = [line for line in lines if line.startswith("glimt:idle_steps_total{")]
    return sum(float(row.split()[-1]) for row in rows)


def all_texts(serving: Serving) -> list[str]:
    """The answers to all questions, asked at once."""
    found = ["" for _ in QUESTIONS]

    def ask(place: int) -> None:
        found[place] = text_of(serving, QUESTIONS[place])

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(QUESTIONS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_requests_get_the_answers_of_one_engine(shared: Serving, serving: Serving) -> None:
    expected = [text_of(serving, question) for question in QUESTIONS]
    assert all_texts(shared) == expected
    assert [text_of(shared, question) for question in QUESTIONS] == expected
    # Whoever had nothing to do took part for the other.
    shared.wait_for(lambda: idle_steps(shared) > 10)


def test_answers_under_a_grammar_wait_for_their_masks(shared: Serving) -> None:
    body = {**SHORT, "max_tokens": 12, "structured_outputs": {"regex": "[0-9]{3}-[a-f]{2}"}}

    def ask(found: list[str]) -> None:
        with urllib.request.urlopen(post(shared, body), timeout=60) as response:
            found.append(json.load(response)["choices"][0]["message"]["content"])

    found: list[str] = []
    threads = [threading.Thread(target=ask, args=(found,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(re.fullmatch("[0-9]{3}-[a-f]{2}", text) for text in found)


def test_experts_placed_by_what_was_counted_change_no_answer(
    shared: Serving, serving: Serving, checkpoint: Path, tmp_path: Path
) -> None:
    def experts(*words: str) -> None:
        command = [sys.executable, "-m", "glimt", "experts", *words]
        subprocess.run(command, check=True, env={**os.environ, "GLIMT_ADMIN_KEY": "root"})

    load, table = str(tmp_path / "load.json"), str(tmp_path / "placement.json")
    all_texts(shared)
    experts("collect", load, "--base-url", shared.url)
    experts("place", load, "--gpus", "2", "--redundant", "2", "-o", table)
    flags = [*FLAGS, "--expert-placement", table, "--all2all-backend", "alltoall"]
    with Serving(checkpoint, *flags, log=tmp_path / "log.txt") as placed:
        assert all_texts(placed) == [text_of(serving, question) for question in QUESTIONS]


def test_all_sleep_and_wake(shared: Serving) -> None:
    with urllib.request.urlopen(post(shared, SHORT), timeout=60) as response:
        before = json.load(response)["choices"][0]["message"]
    for level in (1, 2):
        order(shared, f"/sleep?level={level}")
        order(shared, "/wake_up")
        for _ in range(2):
            with urllib.request.urlopen(post(shared, SHORT), timeout=60) as response:
                assert json.load(response)["choices"][0]["message"] == before


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_replica_ends_the_requests_of_all_and_all_come_back(
    shared: Serving, signum: int
) -> None:
    before = shared.children_running("engine")
    with (
        urllib.request.urlopen(post(shared, LONG_ENOUGH), timeout=60) as one,
        urllib.request.urlopen(post(shared, LONG_ENOUGH), timeout=60) as other,
    ):
        one.readline()
        other.readline()
        shared.wait_for(lambda: list(tokens_of_engines(shared).values()) == [1.0, 1.0])
        before[1].send_signal(signum)
        ends = [one.read().decode(), other.read().decode()]
    for end in ends:
        assert '"code":"not_ready"' in end.replace(" ", "")
        assert '"finish_reason":"' not in end.replace(" ", "")
    shared.wait_for(lambda: answers(shared), 60)
    _, alive = psutil.wait_procs(before, timeout=10)
    assert not alive
    assert len(shared.children_running("engine")) == 2
    assert all(text_of(shared, question) for question in QUESTIONS)


def test_sigterm_leaves_neither_engines_nor_files(shared: Serving) -> None:
    children, folders = shared.children(), folders_of(shared)
    assert shared.stop(60) == 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert folders
    assert not any(folder.exists() for folder in folders)
    assert "CRITICAL" not in shared.log.read_text().split("stopping:")[-1]
