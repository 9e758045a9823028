"""Folders of sockets: those of killed processes go, those of living ones stay."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from glimt.processes.folders import make_folder, remove_stale_folders

KILLED = """
import os
from glimt.processes.folders import make_folder
print(make_folder(), flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_folder_goes_when_its_owner_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    mine = make_folder()
    killed = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    stale = Path(killed.stdout.strip())
    strange = tmp_path / "glimt-of-somebody-else"
    strange.mkdir()
    assert stale.parent == tmp_path
    assert stale.exists()
    remove_stale_folders()
    assert not stale.exists()
    assert mine.exists()
    assert strange.exists(), "it does not say whose it is"
