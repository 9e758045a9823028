"""Task files: what is wrong is said with line, field and file before anything is asked."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from glimt.errors import BadSettings
from glimt.evaluation.questions import question_of, text_of
from glimt.evaluation.subjects import subjects_of
from glimt.evaluation.tasks import read_tasks, select
from glimt.evaluation.wishes import EvalWishes
from tests.evaluation.support import TASKS, TOOL, write_tasks, zipped

GOOD: dict[str, Any] = {"question": "?", "answer": "3"}


def problems(folder: Path, *lines: Any) -> str:
    write_tasks(folder)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "bad.jsonl").write_text(text)
    with pytest.raises(BadSettings) as error:
        read_tasks(folder / "bad.jsonl")
    return error.value.message


def test_a_folder_and_a_zip_hold_the_same_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    plain = read_tasks(write_tasks(folder))
    packed = read_tasks(zipped(folder, tmp_path / "tasks.zip"))
    assert plain.tasks == packed.tasks
    assert [task.id for task in plain.tasks] == [task["id"] for task in TASKS]
    for task in plain.tasks:
        wishes = EvalWishes()
        one, other = (question_of(task, file.files, wishes) for file in (plain, packed))
        assert one == other


def test_defaults_make_short_lines_possible(tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    # Editors on Windows begin UTF-8 with a mark of the byte order.
    path.write_text(
        '\ufeff\n{"question": "How many?", "answer": 3}\n\n{"question": "?", "answer": "x"}'
    )
    first, second = read_tasks(path).tasks
    assert (first.id, first.skill, first.metric) == ("line-2", "all", "exact")
    assert second.id == "line-4"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: "),
        ("[1]", "line 2: Expected `object`, got `array`"),
        ({"question": 3, "answer": "x"}, "line 2: field question: Expected `str"),
        ({"question": "?", "answer": "x", "metric": "bleu"}, "; known are exact, anls, iou, "),
        ({"question": "?", "answer": "x", "colour": 1}, "unknown field `colour`; meta holds"),
        ({"question": "?", "answers": ["x"]}, "unknown field `answers`; did you mean answer?"),
        ({"question": "?"}, "line 2: field answer: it is missing"),
        ({"answer": "x"}, "line 2: field question: it is missing"),
        ({"question": "?", "answer": [True]}, "line 2: field answer: True is no text"),
        ({"question": "?", "answer": "x", "metric": "iou"}, "line 2: field answer: 'x' is no box"),
        ({"question": "?", "answer": "x", "metric": "tool_call"}, "line 2: field answer: tool"),
        ({**GOOD, "messages": [{"role": "user"}]}, "line 2: field question: it goes without mess"),
        ({**GOOD, "image": "lost.png"}, "line 2: there is no file lost.png"),
        ({**GOOD, "images": ["a.png", "sub/lost.png"]}, "line 2: there is no file sub/lost.png"),
        ({**GOOD, "video": "/etc/passwd"}, "'/etc/passwd' does not lie below the folder"),
        ({**GOOD, "image": "../a.png"}, "'../a.png' does not lie below the folder"),
        ({**GOOD, "id": "line-1"}, "line 2: field id: line 1 has it, too"),
    ],
)
def test_a_wrong_line_is_named_with_its_field(tmp_path: Path, line: Any, message: str) -> None:
    assert message in problems(tmp_path, GOOD, line)


def test_all_wrong_lines_are_named_at_once_up_to_twenty(tmp_path: Path) -> None:
    text = problems(tmp_path, *[{"question": "?"}] * 30)
    assert "line 20: " in text
    assert "line 21: " not in text
    assert "and 10 more" in text


def test_a_picture_named_in_messages_has_to_be_there(tmp_path: Path) -> None:
    part = {"type": "image_url", "image_url": {"url": "lost.png"}}
    line = {"messages": [{"role": "user", "content": [part]}], "answer": "x"}
    assert "line 1: there is no file lost.png" in problems(tmp_path, line)


@pytest.mark.parametrize("name", ["missing.jsonl", "empty.jsonl", "empty.zip"])
def test_a_file_without_tasks_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.txt").write_text("no tasks")
    zipped(tmp_path / "other", tmp_path / "empty.zip")
    with pytest.raises(BadSettings, match=name):
        read_tasks(tmp_path / name)


def test_tasks_are_chosen_by_skill_and_number(tmp_path: Path) -> None:
    tasks = read_tasks(write_tasks(tmp_path)).tasks
    assert [task.id for task in select(tasks, "counting, motion", 1)] == ["c-1", "v-1"]
    assert len(select(tasks, None, None)) == len(TASKS)
    with pytest.raises(BadSettings, match="no tasks of 'conting'; the file has counting, boxes"):
        select(tasks, "conting", None)


def test_a_task_becomes_messages_with_its_files_inside(tmp_path: Path) -> None:
    file = read_tasks(write_tasks(tmp_path, TASKS))
    asked = {task.id: question_of(task, file.files, EvalWishes(seed=3)) for task in file.tasks}
    [message] = asked["t-1"].messages
    urls = [part["image_url"]["url"] for part in message["content"][:-1]]
    assert message["content"][-1] == {"type": "text", "text": "Which is brighter?"}
    for url, name in zip(urls, ("a.png", "b.png"), strict=True):
        head, _, data = url.partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data) == (tmp_path / name).read_bytes()
    assert asked["v-1"].messages[0] == {"role": "system", "content": "Be short."}
    video = asked["v-1"].messages[1]["content"][0]
    assert video["video_url"]["url"].startswith("data:video/mp4;base64,")
    turns = asked["m-1"].messages
    assert turns[0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert turns[1:] == TASKS[-2]["messages"][1:]
    assert asked["tool-1"].tools == [TOOL]
    assert asked["tool-1"].seed == 3
    assert text_of(file.tasks[5]) == "What colour?"


def test_without_a_name_the_built_in_model_answers() -> None:
    [subject] = subjects_of(None, EvalWishes())
    assert (subject.label, subject.is_local) == ("builtin", True)
    [subject] = subjects_of(None, EvalWishes(base_url="http://x"))
    assert (subject.model, subject.is_local) == (None, False)
    first, second = subjects_of(None, EvalWishes(against_quantization="fp8"))
    assert (first.label, second.label) == ("builtin", "builtin (fp8 weights)")


def test_thinking_is_asked_for_as_the_task_or_the_user_says(tmp_path: Path) -> None:
    file = read_tasks(write_tasks(tmp_path))

    def thinking(wish: Any) -> list[bool]:
        wishes = EvalWishes(thinking=wish)
        return [question_of(task, file.files, wishes).thinking for task in file.tasks]

    assert thinking("task") == [False, False, False, True, False, False, False]
    assert thinking("on") == [True] * 7
    assert thinking("off") == [False] * 7
