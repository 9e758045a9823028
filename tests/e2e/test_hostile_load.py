"""More than there is room for: preemption, full queues, clients that leave, keys that are wrong."""

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from glimt.api.routes import ROUTES
from tests.support.hostile import Canary, Reply, ask, chat_body, connect
from tests.support.serving import Serving

KEY = "a-secret-that-no-log-shows"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}
OPEN = {"/livez", "/readyz", "/health", "/ping"}
FLAGS = ("--max-model-len", "512", "--kv-cache-memory-bytes", "6M", "--max-num-queued-reqs", "40")


@pytest.fixture(scope="module")
def full(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with a KV cache for two long requests, a short queue, and a key."""
    log = tmp_path_factory.mktemp("log") / "full.txt"
    with Serving(checkpoint, *FLAGS, "--api-key", KEY, log=log) as serving:
        yield serving


def test_answers_under_preemption_are_those_of_an_idle_server(full: Serving) -> None:
    bodies = [
        chat_body(
            messages=[{"role": "user", "content": f"story {seed} " + "w " * (20 * seed)}],
            max_tokens=60,
            temperature=0.8,
            top_k=0,
            top_p=1,
            seed=seed,
            ignore_eos=True,
        )
        for seed in range(10)
    ]

    def answer(body: dict[str, Any]) -> str:
        return ask(full, body, headers=WITH_KEY).text

    alone = [answer(body) for body in bodies]
    with ThreadPoolExecutor(10) as threads:
        together = list(threads.map(answer, bodies))
    assert together == alone
    metrics = ask(full, method="GET", path="/metrics", headers=WITH_KEY).body.decode()
    line = next(x for x in metrics.splitlines() if x.startswith("vllm:num_preemptions_total{"))
    assert float(line.rpartition(" ")[2]) > 0


def test_too_many_at_once_are_told_when_to_come_back(full: Serving) -> None:
    canary = Canary(full, WITH_KEY)

    def one(_: int) -> Reply:
        return ask(full, chat_body(max_tokens=30, ignore_eos=True), headers=WITH_KEY)

    with ThreadPoolExecutor(120) as threads:
        replies = list(threads.map(one, range(120)))
    assert {reply.status for reply in replies} == {200, 429}
    assert all(int(r.headers["retry-after"]) > 0 for r in replies if r.status == 429)
    canary.sings()


def test_clients_that_leave_at_any_moment_leave_nothing_behind(full: Serving) -> None:
    canary = Canary(full, WITH_KEY)

    def leave(seed: int) -> None:
        rng = random.Random(seed)
        body = json.dumps(chat_body(max_tokens=300, stream=True, ignore_eos=True)).encode()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer %s\r\n" % KEY.encode()
        )
        with connect(full) as sock:
            sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
            sock.sendall(body[: rng.choice([10, len(body), len(body)])])
            time.sleep(rng.choice([0, 0.01, 0.1, 0.3]))

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(leave, range(150)))
    canary.sings()


def test_every_route_but_the_probes_asks_for_the_key(full: Serving) -> None:
    for route in ROUTES:
        for method in route.methods:
            status = ask(full, method=method, path=route.path).status
            assert (status != 401) == (route.path in OPEN), route.path
    wrong = ["Bearer", f"bearer {KEY}", f"Bearer  {KEY}", f"Basic {KEY}", f"Bearer {KEY}?"]
    for value in [*wrong, f"Bearer {KEY} x", b"Bearer \xff\xfe", "Bearer "]:
        reply = ask(full, chat_body(), headers={"Authorization": value})
        assert reply.status == 401, value
        assert KEY.encode() not in reply.body
    assert ask(full, method="GET", path="/nothing").status == 401
    assert ask(full, chat_body(), headers=WITH_KEY).status == 200
    assert ask(full, chat_body(), headers={"Authorization": "x" * 10**6}).status == 431
    assert KEY not in full.log.read_text()
