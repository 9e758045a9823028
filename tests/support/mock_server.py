"""benchmarks/mock_server.py in a process of its own, for the tests of `glimt bench`."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "mock_server.py"


class MockServer:
    """The scripted server, once it listens."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, str(SCRIPT), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http"), "the mock server did not start"

    def requests(self) -> list[dict[str, Any]]:
        """Every request so far: arrival, headers, body."""
        with urllib.request.urlopen(f"{self.url}/log") as answer:
            return list(json.load(answer))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()
