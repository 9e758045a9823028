"""Checkpoints of a run: whole or not there."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from training import checkpoints

WRITER = """
import sys, torch
from pathlib import Path
from training import checkpoints
folder, number = Path(sys.argv[1]), 1
while True:
    state = {"number": number, "weights": torch.full((4_000_000,), float(number))}
    checkpoints.save(folder, state)
    print(number, flush=True)
    number += 1
"""


def test_a_kill_while_writing_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.013)  # somewhere in the writing of the next one
        writer.kill()
    state = checkpoints.load(tmp_path / checkpoints.FILE)
    assert state["number"] >= 1
    assert torch.equal(state["weights"], torch.full((4_000_000,), float(state["number"])))


def test_what_is_half_written_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    whole = checkpoints.save(tmp_path, {"weights": torch.ones(1000)}).read_bytes()
    (tmp_path / checkpoints.FILE).unlink()
    (tmp_path / f"{checkpoints.FILE}.partial").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoints.load(tmp_path / checkpoints.FILE)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / checkpoints.FILE)
    with pytest.raises(ValueError, match="99"):
        checkpoints.load(tmp_path / checkpoints.FILE)
