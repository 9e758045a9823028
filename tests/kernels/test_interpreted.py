"""The Triton kernels against their definitions on a CPU, in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SLOW = {"test_cut.py", "test_noise.py", "test_whole_model.py"}  # most of a minute together
FILES = [
    pytest.param(path.name, marks=pytest.mark.slow if path.name in SLOW else ())
    for path in sorted((HERE / "interpreted").glob("test_*.py"))
]


@pytest.mark.parametrize("file", FILES)
def test_the_interpreted_kernels_do_what_their_definitions_do(file: str) -> None:
    pytest.importorskip("triton", reason="Triton has packages for Linux only")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"interpreted/{file}",
    ]
    run = subprocess.run(
        command,
        cwd=HERE,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
