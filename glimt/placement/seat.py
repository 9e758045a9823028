"""A place in the cluster: a Ray actor that holds GPUs, and runs there what it is told.

Not one of its calls is part of a step: it is told once what to run, and gives back what that says
for people. The ranks talk to each other and to the engine by their own connections.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import ray


class Place:
    """On some machine, with some GPUs."""

    def where(self) -> tuple[str, str]:
        """The id of the machine, and the GPUs as CUDA_VISIBLE_DEVICES has them."""
        return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def meeting_point(self) -> tuple[str, int]:
        """An address of this machine that others know, and a port that was free just now."""
        host = str(ray.util.get_node_ip_address())
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
            taken.bind((host, 0))
            return host, int(taken.getsockname()[1])

    def run(self, settings: bytes) -> Iterator[str | int]:
        """Run what a user would have typed here: the lines it prints, then its exit status.

        It ends with this actor: the kernel sees to that (`placement/worker.py`).
        """
        process = subprocess.Popen(
            [sys.executable, "-m", "glimt.placement.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a process without pipes")
        with process.stdin as stdin:
            stdin.write(settings)
        with process.stdout as output:
            for line in output:
                yield line.decode(errors="replace").rstrip("\n")
        yield process.wait()


Seat = ray.remote(Place)
