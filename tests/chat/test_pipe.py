"""A chat in a pipe: each line is a question, and only the answers are written."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.chat.conftest import CHAT, Ended, Piped
from tests.support.scripted_server import (
    Scripted,
    ScriptedServer,
    answer,
    delta,
    end,
    refusal,
    texts,
)


def test_each_line_is_a_question_and_only_answers_are_written(
    server: ScriptedServer, piped: Piped, picture: Path
) -> None:
    server.script += [
        Scripted([delta(reasoning="Hm"), delta(content="Red.\x1b[0m"), end()]),
        answer("Paint."),
    ]
    options = ("--base-url", server.url, "--temperature", "0", "--max-tokens", "7")
    questions = f"/image {picture}\nWhat is\\\nthis?\n\n//why?\n"
    assert piped(questions, *options) == Ended(0, "Red.␛[0m\nPaint. \n", "")
    assert texts(server.requests[1]) == ["What is\nthis?", "Red.\x1b[0m", "/why?"]
    assert server.requests[0]["temperature"] == 0
    assert server.requests[0]["max_completion_tokens"] == 7
    assert "chat_template_kwargs" not in server.requests[0]


def test_a_failure_is_told_and_the_next_question_asked(
    server: ScriptedServer, piped: Piped
) -> None:
    server.script += [refusal(429, "full", Retry_After="3"), answer("Here.")]
    ended = piped("One?\nTwo?", "--base-url", server.url)
    assert (ended.status, ended.out) == (1, "Here. \n")
    assert "full (try again in 3 s)" in ended.errors
    assert texts(server.requests[1]) == ["Two?"]
    assert piped("/nonsense\n", "--base-url", server.url).status == 1


def test_one_question_can_be_asked_with_its_pictures(
    server: ScriptedServer, piped: Piped, picture: Path
) -> None:
    server.script += [answer("Red."), refusal(500, "bad luck"), Scripted([end("length")])]
    once = ("--base-url", server.url, "--once", "What?", "--image", str(picture), str(picture))
    assert piped("", *once, "--model", "other") == Ended(0, "Red. \n", "")
    assert server.requests[0]["model"] == "other"
    assert len(server.requests[0]["messages"][0]["content"]) == 3
    assert piped("", *once).status == 1
    assert "cut at the token limit" in piped("", *once).errors


def test_a_saved_conversation_goes_on_elsewhere(
    server: ScriptedServer, piped: Piped, picture: Path, tmp_path: Path
) -> None:
    server.script += [answer("Red.")]
    file = tmp_path / "talk.json"
    lines = f"/image {picture}\nWhat?\n/save {file}\n"
    assert piped(lines, "--base-url", server.url).status == 0
    saved = json.loads(file.read_text())
    assert saved["model"] == "modest-1"
    assert saved["messages"][:1] == server.requests[0]["messages"]
    assert saved["messages"][1] == {"role": "assistant", "content": "Red. "}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base-url", "http://127.0.0.1:9"], "nothing answers at http://127.0.0.1:9/v1"),
        (["--base-url", "ftp://x"], "write it like http://"),
        (["one", "--model", "other"], "name one model"),
        (["--temperature", "-1", "--max-tokens", "0"], "must be at least 1"),
        (["--base-url", "http://x", "--once", " "], "the question is empty"),
    ],
)
def test_what_cannot_begin_says_why(piped: Piped, arguments: list[str], message: str) -> None:
    ended = piped("", *arguments)
    assert ended.status == 2
    assert message in ended.errors


def test_a_missing_picture_is_told_before_anything_is_asked(
    server: ScriptedServer, piped: Piped
) -> None:
    ended = piped("What?", "--base-url", server.url, "--image", "/missing.png")
    assert ended.status == 2
    assert "there is no file /missing.png" in ended.errors
    assert server.requests == []


def test_openais_key_goes_to_nobody_else(
    server: ScriptedServer, piped: Piped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "precious")
    server.script += [answer("Hi."), answer("Hi.")]
    piped("", "--base-url", server.url, "--once", "Hello")
    assert "Authorization" not in server.headers[-1]
    monkeypatch.setenv("GLIMT_API_KEY", "ours")
    piped("", "--base-url", server.url, "--once", "Hello")
    assert server.headers[-1]["Authorization"] == "Bearer ours"


def test_a_reader_that_has_enough_ends_the_chat_quietly(
    server: ScriptedServer, environment: dict[str, str]
) -> None:
    server.script += [answer("word " * 10_000)] * 2
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [*CHAT, "--base-url", server.url],
        input=b"a\nb\n",
        env=environment,
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(write)
    assert (ended.stderr, ended.returncode) == (b"", 1)
