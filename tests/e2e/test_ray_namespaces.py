"""Two Ray nodes that reach each other over a network of their own only, whose cable can be cut."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_failures import LONG, answers, post
from tests.e2e.test_nodes import FLAGS, said
from tests.support.serving import Serving

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]', or make test-all")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PORT = 6390  # of Ray's head, in a network where nothing else is
HERE = "198.18.77.254"
HOSTS = {"a": "198.18.77.1", "b": "198.18.77.2"}


def ip(*words: str) -> None:
    found = subprocess.run(["ip", *words], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"network namespaces cannot be made here: {found.stderr.strip()}")


class Network:
    """A bridge, and two namespaces at it: machines a and b."""

    def __init__(self) -> None:
        if shutil.which("ip") is None or os.geteuid():
            pytest.skip("network namespaces need iproute2 and root")
        self._id = f"gl{os.getpid() % 100_000}"
        bridge = f"{self._id}br"
        self._rays: list[subprocess.Popen[bytes]] = []
        ip("link", "add", bridge, "type", "bridge")
        ip("link", "set", bridge, "up")
        ip("addr", "add", f"{HERE}/24", "dev", bridge)
        for name, address in HOSTS.items():
            space = self._id + name
            ip("netns", "add", space)
            ip("link", "add", space, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", space, "master", bridge, "up")
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")

    def on(self, name: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self._id + name)

    def cable_of(self, name: str, state: str) -> None:
        ip("link", "set", self._id + name, state)

    def start_ray(self, name: str, *flags: str) -> None:
        words = [*self.on(name), sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        words += [*flags, f"--node-ip-address={HOSTS[name]}", f"--node-name={name}"]
        words += ["--num-cpus=1", "--num-gpus=0", f"--object-store-memory={80 * 2**20}"]
        quiet = subprocess.DEVNULL
        self._rays.append(subprocess.Popen(words, stdout=quiet, stderr=quiet))

    def close(self) -> None:
        for ray in reversed(self._rays):
            ray.terminate()
            try:
                ray.wait(20)
            except subprocess.TimeoutExpired:
                for process in psutil.Process(ray.pid).children(recursive=True):
                    process.kill()
                ray.kill()
                ray.wait()
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", self._id + name])
        subprocess.run(["ip", "link", "del", f"{self._id}br"])


def is_up(address: str) -> bool:
    try:
        socket.create_connection((address, PORT), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network()
    try:
        network.start_ray("a", "--head", f"--port={PORT}", "--include-dashboard=false")
        deadline_s = time.monotonic() + 60
        while not is_up(HOSTS["a"]) and time.monotonic() < deadline_s:
            time.sleep(0.2)
        network.start_ray("b", f"--address={HOSTS['a']}:{PORT}")
        yield network
    finally:
        network.close()


@pytest.fixture(scope="module")
def spread(
    network: Network, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    flags = ["-tp", "2", "--nnodes", "2", "--distributed-executor-backend", "ray"]
    flags += ["--host", HOSTS["a"], *FLAGS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", f"{HOSTS['a']}:{PORT}")
        with Serving(checkpoint, *flags, log=log, within=network.on("a")) as serving:
            yield serving


def test_machines_with_addresses_of_their_own_give_the_tokens_of_one_process(
    spread: Serving, checkpoint: Path, tmp_path: Path
) -> None:
    with Serving(checkpoint, *FLAGS, log=tmp_path / "one.txt") as one:
        expected = said(one)
    assert said(spread) == expected
    assert f"[b ({HOSTS['b']})] is the place of ranks 1 to 1" in spread.log.read_text()


def test_a_cut_cable_ends_requests_and_what_it_parted_meets_again(
    spread: Serving, network: Network
) -> None:
    with urllib.request.urlopen(post(spread, LONG), timeout=60) as response:
        response.readline()
        network.cable_of("b", "down")
        events = [line for line in response.read().decode().splitlines() if line]
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "not_ready"
    network.cable_of("b", "up")
    spread.wait_for(lambda: answers(spread), 90)
