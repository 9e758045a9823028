"""A small task file with pictures, and `glimt eval` as a function."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from glimt.cli import main
from tests.support.media import encoded, grey_clip, pattern

TOOL = {
    "type": "function",
    "function": {
        "name": "mark",
        "description": "Marks a thing.",
        "parameters": {"type": "object", "properties": {"colour": {"type": "string"}}},
    },
}
TASKS: list[dict[str, Any]] = [
    {"id": "c-1", "skill": "counting", "image": "a.png", "question": "How many?", "answer": "3"},
    {"id": "c-2", "skill": "counting", "image": "b.png", "question": "How many?", "answer": [2]},
    {
        "id": "b-1",
        "skill": "boxes",
        "image": "a.png",
        "question": "Where is it?",
        "answer": "[[100,100,400,400]]",
        "metric": "iou",
    },
    {
        "id": "t-1",
        "skill": "two",
        "images": ["a.png", "b.png"],
        "question": "Which is brighter?",
        "answer": "first",
        "choices": ["first", "second"],
        "thinking": True,
    },
    {
        "id": "v-1",
        "skill": "motion",
        "video": "v.mp4",
        "question": "Where to?",
        "answer": "left",
        "metric": "contains",
        "system": "Be short.",
    },
    {
        "id": "m-1",
        "skill": "turns",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "sub/c.png"}},
                    {"type": "text", "text": "What is it?"},
                ],
            },
            {"role": "assistant", "content": "A pattern."},
            {"role": "user", "content": "What colour?"},
        ],
        "answer": "red",
        "metric": "anls",
    },
    {
        "id": "tool-1",
        "skill": "tools",
        "image": "b.png",
        "question": "Mark it.",
        "tools": [TOOL],
        "answer": {"name": "mark", "arguments": {"colour": "red"}},
        "metric": "tool_call",
    },
]


def write_tasks(folder: Path, tasks: list[dict[str, Any]] = TASKS) -> Path:
    """tasks.jsonl and its media in `folder`."""
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("a.png", "b.png", "sub/c.png")):
        (folder / name).write_bytes(encoded(pattern(56, 84, seed)))
    (folder / "v.mp4").write_bytes(grey_clip(24))
    path = folder / "tasks.jsonl"
    path.write_text("\n".join(json.dumps(task) for task in tasks) + "\n")
    return path


def zipped(folder: Path, target: Path) -> Path:
    """All files of `folder` in a zip."""
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return target


def run_eval(*arguments: str | Path) -> int:
    """`glimt eval …`; the exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # the tests' own number of threads stays
        with pytest.raises(SystemExit) as ended:
            main(["eval", *map(str, arguments)])
    return int(ended.value.code or 0)


def results(folder: Path) -> dict[str, Any]:
    """results.json."""
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


SHORT = ("--max-tokens", "12", "--concurrency", "4")


def compared(tasks: Path, folder: Path, *arguments: str | Path) -> dict[str, Any]:
    """The results of `glimt eval … --tasks … --output …`."""
    assert run_eval(*arguments, "--tasks", tasks, "--output", folder, *SHORT) == 0
    return results(folder)


def check_no_difference(content: dict[str, Any]) -> None:
    """Both models said and expected the same everywhere."""
    comparison = content["comparison"]
    assert comparison["overall"]["n"] == len(TASKS)
    for result in (*comparison["skills"], comparison["overall"]):
        assert result["difference"] == 0.0
        low, high = result["interval"]
        assert low == -high < 0  # as wide as so few tasks allow
        assert (result["only_a"], result["only_b"], result["p_value"]) == (0, 0, 1.0)
    assert comparison["same_answer"]["share"] == 1.0
    assert comparison["divergence"]["same_top"]["share"] == 1.0
