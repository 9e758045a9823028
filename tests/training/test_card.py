"""The model card says what was measured, and what was missed."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.card import main

STEPS = [
    {
        "kind": "steps",
        "elapsed_s": 600.0 * i,
        "step": 1000 * i,
        "loss": 2 / i,
        "samples_per_s": 5000,
    }
    for i in (1, 2)
]


def share(num: int, n: int) -> dict[str, Any]:
    return {"num": num, "n": n, "share": num / n, "low": 0.5, "high": 0.75}


def results(counting: int) -> dict[str, Any]:
    skills = [("counting", share(counting, 100)), ("chat", share(3, 100))]
    return {
        "tasks_file": {"name": "heldout.zip"},
        "sides": [
            {
                "facts": {"weights": "fp8", "kv_cache_dtype": "float32", "device": "cpu"},
                "summary": {
                    "skills": [{"skill": name, "accuracy": each} for name, each in skills],
                    "in_format": share(100, 100),
                    "overall": {"accuracy": share(counting + 3, 200)},
                },
            }
        ],
    }


def make(folder: Path, counting: int) -> str:
    (folder / "results.json").write_text(json.dumps(results(counting)))
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, STEPS)))
    files = [str(folder / name) for name in ("results.json", "log.jsonl", "card.md")]
    assert main([files[0], "--log", files[1], "--out", files[2]]) == 0
    return Path(files[2]).read_text()


def test_the_card_shows_each_skill_and_names_those_below_their_aim(tmp_path: Path) -> None:
    card = make(tmp_path, 90)
    assert "| counting | 90 | 100 | 90.0 % | 50.0 – 75.0 % | 95 % |" in card
    assert "Below its aim: counting." in card
    assert "20.0 minutes" in card
    assert "3.0 million samples" in card
    assert "All aims are met." in make(tmp_path, 95)


def test_results_of_something_else_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, STEPS)))
    arguments = [str(tmp_path / "results.json"), "--log", str(tmp_path / "log.jsonl")]
    assert main([*arguments, "--out", str(tmp_path / "card.md")]) == 1
    assert "results.json" in capsys.readouterr().err
    assert not (tmp_path / "card.md").exists()
