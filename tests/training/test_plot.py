"""Curves from a log."""

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the extra `training` is not installed")

from training.plot import main

STEPS = [
    {"kind": "steps", "elapsed_s": 60 * i, "step": 9 * i, "loss": 2 / i, "lr": 1e-3}
    for i in (1, 2, 3)
]
ACCURACY = [
    {"kind": "accuracy", "elapsed_s": 60, "step": 9, "skills": {"boxes": [1, 4]}},
    {
        "kind": "accuracy",
        "elapsed_s": 180,
        "step": 27,
        "skills": {"boxes": [4, 4], "tools": [1, 2]},
    },
]


def test_a_log_becomes_two_files_that_name_every_skill(tmp_path: Path) -> None:
    log = "\n".join(map(json.dumps, STEPS + ACCURACY))
    (tmp_path / "log.jsonl").write_text(log)
    assert main([str(tmp_path), "--out", str(tmp_path / "curves")]) == 0
    loss, accuracy = ((tmp_path / "curves" / f"{n}.svg").read_text() for n in ("loss", "accuracy"))
    assert "<!-- boxes -->" in accuracy
    assert "<!-- tools -->" in accuracy
    assert "27 steps" in loss
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "loss.svg").read_text() == loss  # nothing in it but the log


def test_a_log_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.jsonl").write_text("")
    assert main([str(tmp_path)]) == 1
    assert "no record" in capsys.readouterr().err
