"""`glimt eval` end to end: a local model and a running server, on a tiny random checkpoint."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from glimt.evaluation.local import LocalModel
from tests.evaluation.support import (
    SHORT,
    TASKS,
    check_no_difference,
    compared,
    results,
    run_eval,
)
from tests.support.serving import Serving


@pytest.fixture(scope="module")
def offline(
    checkpoint: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The results of one run on the local model."""
    folder = tmp_path_factory.mktemp("offline")
    arguments = ("--tasks", tasks, "--output", folder, "--device", "cpu", *SHORT)
    assert run_eval(checkpoint, *arguments) == 0
    return results(folder)


def answers(content: dict[str, Any]) -> list[Any]:
    return [
        (record["id"], record["reasoning"], record["answer"], record["completion_tokens"])
        for record in content["sides"][0]["records"]
    ]


def test_a_local_model_answers_every_task(offline: dict[str, Any], checkpoint: Path) -> None:
    [side] = offline["sides"]
    assert side["is_complete"]
    assert [record["id"] for record in side["records"]] == [task["id"] for task in TASKS]
    assert all(record["error"] is None for record in side["records"])
    assert all(record["completion_tokens"] for record in side["records"])
    summary = side["summary"]
    assert [skill["skill"] for skill in summary["skills"]] == [
        *("counting", "boxes", "two", "motion", "turns", "tools")
    ]
    assert summary["overall"]["accuracy"]["n"] == len(TASKS)
    assert summary["in_format"]["n"] == 3  # the box, the thoughts, the call
    assert summary["tokens_per_s"] > 0
    assert sum(record["prompt_tokens"] for record in side["records"]) == summary["prompt_tokens"]
    assert side["facts"]["model"] == str(checkpoint)
    assert side["facts"]["weights"] == "bfloat16"


def test_the_results_say_what_was_measured_and_how(offline: dict[str, Any], tasks: Path) -> None:
    assert offline["tasks_file"]["num_tasks"] == len(TASKS)
    assert len(offline["tasks_file"]["sha256"]) == 64
    assert offline["settings"]["max_tokens"] == 12
    assert offline["settings"]["temperature"] == 0.0
    assert "glimt" in offline["versions"]


def test_a_server_gives_the_answers_that_the_local_model_gives(
    offline: dict[str, Any], serving: Serving, tasks: Path, tmp_path: Path
) -> None:
    arguments = ("--tasks", tasks, "--output", tmp_path, *SHORT)
    assert run_eval("--base-url", serving.url, *arguments) == 0
    content = results(tmp_path)
    assert answers(content) == answers(offline)
    assert content["sides"][0]["facts"]["model"] == "tiny"


def test_refused_requests_are_wrong_and_listed_by_class(
    serving: Serving, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tasks.parent / "broken.png").write_bytes(b"no picture")
    mixed = tasks.with_name("mixed.jsonl")
    mixed.write_text(
        '{"question": "Hi", "answer": "x"}\n'
        '{"image": "broken.png", "question": "How many?", "answer": "3"}\n'
    )
    arguments = ("--tasks", mixed, "--output", tmp_path, *SHORT)
    assert run_eval("--base-url", f"{serving.url}/v1/", *arguments) == 0
    [side] = results(tmp_path)["sides"]
    assert side["summary"]["failures"] == {"image_parse_error": 1}
    assert side["summary"]["overall"]["accuracy"]["n"] == 2
    assert not side["records"][1]["is_right"]
    assert "counted as wrong: image_parse_error 1" in capsys.readouterr().out
    only_bad = ("--model", "other-model", "--tasks", mixed, "--output", tmp_path, *SHORT)
    assert run_eval("--base-url", serving.url, *only_bad) == 1  # nothing was answered
    assert results(tmp_path)["sides"][0]["summary"]["failures"] == {"model_not_found": 2}


def test_skills_and_limit_choose_and_the_table_shows_it(
    serving: Serving, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("--skills", "counting,boxes", "--limit", "1", "--tasks", tasks, *SHORT)
    assert run_eval("--base-url", serving.url, "--output", tmp_path, *chosen) == 0
    assert [record["id"] for record in results(tmp_path)["sides"][0]["records"]] == ["c-1", "b-1"]
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in table[2:6]] == [
        ["counting", "1"],
        ["boxes", "1"],
        ["overall", "2"],
        ["format", "1"],
    ]


def test_two_servers_are_compared_by_what_they_list(
    serving: Serving, tasks: Path, tmp_path: Path
) -> None:
    content = compared(tasks, tmp_path, "--base-url", serving.url, "--against", serving.url)
    check_no_difference(content)
    divergence = content["comparison"]["divergence"]
    assert divergence["method"] == "listed logprobs"
    assert divergence["mean_kl"] == pytest.approx(0.0, abs=1e-6)
    assert "lower bound" in content["comparison"]["divergence_note"]


def test_a_server_and_a_checkpoint_are_compared_likewise(
    serving: Serving, checkpoint: Path, tasks: Path, tmp_path: Path
) -> None:
    flags = ("--against", checkpoint, "--device", "cpu")
    content = compared(tasks, tmp_path, "--base-url", serving.url, *flags)
    check_no_difference(content)
    assert content["comparison"]["divergence"]["mean_kl"] == pytest.approx(0.0, abs=1e-5)


def interrupt_at(
    number: int, monkeypatch: pytest.MonkeyPatch, by: signal.Signals = signal.SIGINT
) -> None:
    """Press Ctrl-C when this task is asked, counted from one."""
    ask = LocalModel.answer
    num_asked = 0

    async def answer(self: LocalModel, question: Any) -> Any:
        nonlocal num_asked
        num_asked += 1
        if num_asked == number:
            os.kill(os.getpid(), by)
        return await ask(self, question)

    monkeypatch.setattr(LocalModel, "answer", answer)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_what_was_answered(
    by: signal.Signals,
    checkpoint: Path,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupt_at(4, monkeypatch, by)
    arguments = ("--tasks", tasks, "--output", tmp_path, "--device", "cpu", "--concurrency", "1")
    assert run_eval(checkpoint, *arguments, "--max-tokens", "12") == 130
    [side] = results(tmp_path)["sides"]
    assert not side["is_complete"]
    assert [record["id"] for record in side["records"]] == ["c-1", "c-2", "b-1"]


def test_an_interruption_before_the_first_answer_leaves_no_table_of_nothing(
    checkpoint: Path,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt_at(1, monkeypatch)
    arguments = ("--tasks", tasks, "--output", tmp_path / "out", "--device", "cpu")
    assert run_eval(checkpoint, *arguments, "--concurrency", "1") == 130
    output = capsys.readouterr()
    assert output.out == ""
    assert "stopped before the first answer" in output.err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base-url", "http://x", "--dtype", "bfloat16"], "--dtype is for local models"),
        (["m", "--limit", "0"], "--limit 0: must be at least 1"),
        (["m", "--iou", "1.5"], "--iou 1.5: must be above 0, at most 1"),
        (["m", "--model", "n"], "MODEL is m and --model is n: name one"),
        (["--base-url", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9/v1/models"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_asked(
    arguments: list[str],
    message: str,
    tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_eval(*arguments, "--tasks", tasks, "--output", tmp_path) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("offline")
def test_no_thread_survives_a_run() -> None:
    deadline = time.monotonic() + 10
    while any(thread.name.startswith("glimt") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.05)
