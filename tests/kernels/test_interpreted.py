"""The Triton kernels against their definitions on a CPU, in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SLOW = {"test_cut.py", "test_noise.py", "test_whole_model.py"}  # half a minute together
FILES = sorted(path.name for path in (HERE / "interpreted").glob("test_*.py"))
# A process takes longer to start than most files take, so those of `make test` share one.
RUNS = [
    pytest.param([file for file in FILES if file not in SLOW], id="quick"),
    *(pytest.param([file], id=file, marks=pytest.mark.slow) for file in FILES if file in SLOW),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("files", RUNS)
def test_the_interpreted_kernels_do_what_their_definitions_do(files: list[str]) -> None:
    pytest.importorskip("triton", reason="Triton has packages for Linux only")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"interpreted/{file}" for file in files),
    ]
    run = subprocess.run(
        command,
        cwd=HERE,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
