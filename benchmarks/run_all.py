"""`make bench`: every number of docs/performance.md that a CPU can give, one after the other.

    python benchmarks/run_all.py [--only NAME …]

Each benchmark is a command of its own and can be run alone with more options; see --help there.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

BENCHMARKS = {
    "scheduler": (
        "scheduler: schedule + commit, fake executor (aim 0.5 ms at 256)",
        "scheduler.py",
    ),
    "sse": ("server: SSE throughput with a simulated engine (aim 40k tokens/s)", "sse.py"),
    "image": ("image path: one 1080p JPEG on one core (aim 60 ms)", "image_path.py"),
    "structured": (
        "engine: a batch under a JSON schema against a free one (aim 0.9)",
        "structured.py",
    ),
    "decode": ("engine: CPU tokens/s of the tiny model", "cpu_decode.py"),
    "ceiling": (
        "benchmark client: what it can measure (aim 2,000 requests/s, 60k chunks/s)",
        "ceiling.py",
    ),
    "serve": ("a whole server, measured by glimt bench serve; report in build/bench", "serve.py"),
}


def machine() -> str:
    """What the numbers were measured on."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def help_time(repeats: int = 7) -> tuple[float, float]:
    """Seconds of `glimt --help`, a whole process: (best, median)."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "glimt", "--help"], check=True, stdout=subprocess.DEVNULL
        )
        seconds.append(time.perf_counter() - started)
    return min(seconds), statistics.median(seconds)


def main() -> int:
    """Run what is asked for; 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=[*BENCHMARKS, "help"])
    wanted = parser.parse_args().only or [*BENCHMARKS, "help"]
    print(f"on {machine()}")
    failed = False
    for name, (title, file) in BENCHMARKS.items():
        if name in wanted:
            print(f"\n{title}", flush=True)
            failed |= subprocess.run([sys.executable, str(HERE / file)]).returncode != 0
    if "help" in wanted:
        print("\ncommand line: `glimt --help`, whole process (aim 0.3 s)")
        best, median = help_time()
        print(f"best {best:.3f} s, median {median:.3f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
