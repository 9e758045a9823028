"""`--mm-processor-cache-type shm` on a real server: images outlive a server process."""

import base64
import json
import signal
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.support.media import encoded, pattern
from tests.support.serving import Serving

PICTURE = base64.b64encode(encoded(pattern(90, 120), "PNG")).decode()
BODY = {
    "model": "tiny",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
                {"type": "text", "text": "What is this?"},
            ],
        }
    ],
    "max_tokens": 2,
}


def ask(serving: Serving) -> bool:
    request = urllib.request.Request(
        f"{serving.url}/v1/chat/completions",
        json.dumps(BODY).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return bool(json.load(response)["choices"])
    except OSError:
        return False


def series(serving: Serving, name: str) -> float:
    with urllib.request.urlopen(f"{serving.url}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_killed_servers_images_are_found_by_the_next_and_nothing_is_left(
    checkpoint: Path, tmp_path: Path
) -> None:
    flags = ["--mm-processor-cache-type", "shm", "--mm-processor-cache-gb", "0.05"]
    flags += ["--limit-mm-per-prompt", '{"image": 2, "video": 0}', "--max-model-len", "1024"]
    with Serving(checkpoint, *flags, log=tmp_path / "server.txt") as serving:
        assert ask(serving)
        assert series(serving, "vllm:mm_cache_hits_total") == 0
        serving.child("server").send_signal(signal.SIGKILL)
        serving.wait_for(lambda: ask(serving), 60)
        assert series(serving, "vllm:mm_cache_hits_total") == 1, "the server began anew"
        children = serving.children()
        for name, memory in (("engine", "glimt-arena-0"), ("server", "glimt-images")):
            mapped = Path(f"/proc/{serving.child(name).pid}/maps").read_text().splitlines()
            assert any(line.endswith(f"/memfd:{memory} (deleted)") for line in mapped)
            named = [line for line in mapped if "/dev/shm/" in line and "(deleted)" not in line]
            assert not named, "memory with a name could be left behind"
        serving.process.kill()
        _, alive = psutil.wait_procs(children, 20)
        assert not alive
