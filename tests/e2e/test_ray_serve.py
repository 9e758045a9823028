"""The Ray Serve application as a user runs it: `serve run FILE`, and HTTP at Ray's port."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from glimt import LLM, SamplingParams
from tests.support.nodes import free_port

pytest.importorskip(
    "ray.serve", reason="Ray is not installed: pip install -e '.[ray]', or make test-all"
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EXACT = "--device cpu --dtype float32 --max-model-len 2048"
KEY = {"content-type": "application/json", "authorization": "Bearer sesame"}


class Application:
    """One server, or two if many tokens wait."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "log.txt"
        config = {
            "http_options": {"host": "127.0.0.1", "port": port},
            "applications": [
                {
                    "name": "glimt",
                    "route_prefix": "/",
                    "import_path": "glimt.placement.serve_app:app",
                    "args": {
                        "command": f"{checkpoint} {EXACT} --served-model-name tiny "
                        "--media-workers 1 --max-num-seqs 1 --api-key sesame",
                        "max_replicas": 2,
                        "queued_tokens": 10,
                        "upscale_delay_s": 1,
                        "downscale_delay_s": 4,
                        "look_back_period_s": 11,
                    },
                }
            ],
        }
        (folder / "serve.yaml").write_text(yaml.safe_dump(config))
        environment = {
            **os.environ,
            "RAY_ADDRESS": "local",
            "RAY_AUTH_TOKEN": os.urandom(32).hex(),
            "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ray.serve.scripts", "run", str(folder / "serve.yaml")],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def wait_for(self, what: Callable[[], bool], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"{what} did not happen; log:\n{self.log.read_text()}")
            time.sleep(0.2)

    def servers(self) -> list[psutil.Process]:
        return self.running("glimt.placement.worker")

    def running(self, part: str) -> list[psutil.Process]:
        """Those of ours with this in their command lines."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                if part in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def ask(self, path: str = "/v1/chat/completions", **body: Any) -> Any:
        data = json.dumps({"model": "tiny", **body}).encode() if body else None
        return urllib.request.urlopen(
            urllib.request.Request(self.url + path, data, KEY), timeout=90
        )

    def answers(self) -> bool:
        try:
            with self.ask("/v1/models") as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False

    def load(self) -> int:
        with self.ask("/load") as answer:
            return int(json.load(answer)["server_load"])


@pytest.fixture(scope="module")
def application(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Application]:
    application = Application(checkpoint, tmp_path_factory.mktemp("serve"))
    try:
        application.wait_for(application.answers)
        yield application
    finally:
        application.process.send_signal(signal.SIGINT)
        application.process.wait(60)


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def test_answers_come_whole_and_streamed_as_without_ray(
    application: Application, checkpoint: Path
) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.0)
    with LLM(str(checkpoint), dtype="float32", device="cpu", max_model_len=2048) as here:
        (expected,) = here.chat([{"role": "user", "content": "Hi."}], params)
    with application.ask(**chat("Hi.", max_tokens=12)) as answer:
        whole = json.load(answer)["choices"][0]["message"]["content"]
        assert [name.lower() for name in answer.headers].count("x-request-id") == 1
    with application.ask(**chat("Hi.", max_tokens=12, stream=True)) as answer:
        events = [line[6:] for line in answer.read().splitlines() if line.startswith(b"data: ")]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert events[-1] == b"[DONE]"
    assert "".join(delta.get("content", "") for delta in deltas) == whole
    assert whole == expected.outputs[0].text


def test_keys_and_errors_are_the_servers_own(application: Application) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(application.url + "/v1/models", timeout=30)
    with refused.value as answer:
        assert json.load(answer)["error"]["code"] == "invalid_api_key"
    with pytest.raises(urllib.error.HTTPError) as refused:
        application.ask(**chat("Hi.", temperature=-1))
    with refused.value as answer:
        assert answer.code == 400


def test_a_client_that_leaves_takes_its_request_along(application: Application) -> None:
    with application.ask(**chat("Hi.", max_tokens=1500, stream=True, ignore_eos=True)) as answer:
        answer.readline()
        assert application.load() == 1
    application.wait_for(lambda: application.load() == 0, 10)


def test_waiting_tokens_bring_a_second_server_which_goes_when_they_are_done(
    application: Application,
) -> None:
    assert len(application.servers()) == 1
    long = chat("Tell me more than fits here.", max_tokens=400, ignore_eos=True)
    with ThreadPoolExecutor(8) as threads:
        done = False

        def keep_asking(_: int) -> int:
            num_answers = 0
            while not done:
                with application.ask(**long) as answer:
                    num_answers += len(json.load(answer)["choices"])
            return num_answers

        answers = threads.map(keep_asking, range(8))
        try:
            application.wait_for(lambda: len(application.servers()) == 2, 60)
            application.wait_for(lambda: application.log.read_text().count("ready after") > 1, 60)
        finally:
            done = True
        assert all(answers), "nobody's requests are lost while servers come"
    application.wait_for(lambda: len(application.servers()) == 1, 90)
    assert application.answers()


def test_a_server_that_dies_is_replaced(application: Application) -> None:
    (server,) = application.servers()
    server.kill()
    server.wait(10)
    application.wait_for(lambda: bool(application.servers()), 60)
    application.wait_for(application.answers, 60)


def test_the_end_leaves_no_server(application: Application) -> None:
    ours = application.running("glimt.")
    assert len(ours) >= 4
    application.process.send_signal(signal.SIGINT)
    assert application.process.wait(60) == 0
    _, alive = psutil.wait_procs(ours, timeout=20)
    assert not alive
