"""A chat at a terminal, with a server that does as it is told."""

import re
from pathlib import Path

from tests.chat.conftest import Start
from tests.support.pty_session import CTRL_C, CTRL_D
from tests.support.scripted_server import (
    Scripted,
    ScriptedServer,
    answer,
    delta,
    end,
    refusal,
    texts,
)

PROMPT = r"> \x1b\[0m"


def test_a_conversation_goes_on_and_is_saved(
    server: ScriptedServer, start: Start, picture: Path, tmp_path: Path
) -> None:
    server.script += [
        Scripted(
            [
                delta(reasoning="Hm, \x1b[2J"),
                delta(reasoning="red."),
                delta(content="It is \x1b]0;x\x07"),
                delta(content="red."),
                end(prompt_tokens=9, completion_tokens=4),
            ]
        ),
        answer("Because paint."),
    ]
    with start("--base-url", server.url, "--system", "Be brief.", "--thinking", "on") as chat:
        chat.expect(f"modest-1 at {server.url}")
        chat.expect(PROMPT)
        chat.type(f"/image {picture}\r")
        chat.expect(r"\x1b\[38;2;255;0;0;48;2;255;0;0m▀▀▀▀\x1b\[0m")
        chat.expect(r"image: \S+red.png, 4 × 2, 1 kB")
        chat.expect(PROMPT)
        chat.type("What colour\\\rhas it?\r")
        chat.expect(r"\x1b\[2mHm, ␛\[2Jred\.\x1b\[0m\r\n\r\nIt is ␛\]0;x␇red\.\r\n")
        chat.expect(r"4 tokens · first after [\d.]+ s · [\d.]+ tokens/s · prompt 9\x1b")
        chat.expect(PROMPT)
        chat.type("/thinking off\r/system off\rWhy?\r")
        chat.expect("Because paint.")
        chat.expect(PROMPT)
        chat.type(f"/save {tmp_path}/talk.md\r")
        chat.expect(r"saved \S+talk.md")
        chat.expect(PROMPT)
        chat.type(CTRL_D)
        assert chat.ended() == 0
    first, second = server.requests
    assert texts(server.requests[0]) == ["Be brief.", "What colour\nhas it?"]
    assert first["messages"][1]["content"][0]["image_url"]["url"].startswith("data:image/png;")
    assert first["chat_template_kwargs"] == {"enable_thinking": True}
    assert texts(server.requests[1]) == ["What colour\nhas it?", "It is \x1b]0;x\x07red.", "Why?"]
    assert second["chat_template_kwargs"] == {"enable_thinking": False}
    assert "> Hm, ␛[2Jred." in (tmp_path / "talk.md").read_text()


def test_ctrl_c_stops_the_answer_and_not_the_chat(server: ScriptedServer, start: Start) -> None:
    server.script += [
        Scripted([delta(content="On and on"), delta(content=" and on")], hangs=True),
        answer("Yes."),
        Scripted(hangs=True),
        answer("At once."),
    ]
    with start("--base-url", server.url) as chat:
        chat.expect(PROMPT)
        chat.type("Tell me\r")
        chat.expect("On and on and on")
        chat.type(CTRL_C)
        chat.expect("about 2 tokens .* · stopped")
        assert server.client_left.wait(10)
        chat.expect(PROMPT)
        chat.interrupt("/quit or Ctrl-D leaves")
        chat.expect(PROMPT)
        chat.type("half a quest")
        chat.expect("half a quest")
        chat.interrupt(PROMPT)
        chat.type("Really?\r")
        chat.expect("Yes.")
        chat.expect(PROMPT)
        chat.type("Sure?\r")
        chat.expect(r"waiting 1 s")
        chat.type(CTRL_C)
        chat.expect(r"\r\x1b\[2K")
        chat.expect("stopped before the answer")
        chat.expect(PROMPT)
        chat.type("/retry\r")
        chat.expect("> Sure?")
        chat.expect("At once.")
        chat.type("/quit\r")
        assert chat.ended() == 0
    assert texts(server.requests[1]) == ["Tell me", "On and on and on", "Really?"]
    assert texts(server.requests[3]) == [*texts(server.requests[1]), "Yes. ", "Sure?"]


def test_a_chat_that_is_told_to_end_leaves_the_terminal_as_it_was(
    server: ScriptedServer, start: Start
) -> None:
    server.script.append(Scripted([delta(reasoning="Let me think")], hangs=True))
    with start("--base-url", server.url) as chat:
        chat.expect(PROMPT)
        chat.type("Why?\r")
        chat.expect(r"\x1b\[2mLet me think")
        chat.process.terminate()
        chat.expect(r"\x1b\[0m\r\n")
        assert chat.ended() == 128 + 15
    assert server.client_left.wait(10)


def test_a_failed_question_is_taken_back_and_can_be_asked_again(
    server: ScriptedServer, start: Start, picture: Path
) -> None:
    server.script += [
        refusal(400, "bad \x1b[31mpicture", "messages[0].content[0].image_url"),
        Scripted([delta(content="I am"), b'data: {"error": {"message": "step failed"}}\n\n']),
        answer("Fine."),
        answer("Finer."),
    ]
    with start("--base-url", server.url, "--image", str(picture), "--no-preview") as chat:
        chat.expect("image: ")
        chat.expect(PROMPT)
        chat.type("How?\r")
        chat.expect(r"\(400 Bad Request\): bad ␛\[31mpicture \[field messages\[0\]\.content\[0\]")
        chat.expect("/retry asks it again")
        chat.expect(PROMPT)
        chat.type("/retry\r")
        chat.expect("I am\r\n")
        chat.expect("the server failed: step failed")
        chat.expect(PROMPT)
        chat.type("/retry\r")
        chat.expect("Fine.")
        chat.expect(PROMPT)
        chat.type("/retry\r")
        chat.expect("Finer.")
        chat.expect(PROMPT)
        chat.type("/clear\r/retry\r")
        chat.expect("there is no question to ask again")
        assert "▀" not in chat.seen
    assert [texts(each) for each in server.requests] == [["How?"]] * 4
    assert [len(each["messages"][0]["content"]) for each in server.requests] == [2] * 4


def test_no_color_and_a_poor_terminal_are_respected(
    server: ScriptedServer, start: Start, picture: Path
) -> None:
    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        server.script.append(Scripted([delta(reasoning="Hm"), delta(content="Red."), end()]))
        with start("--base-url", server.url, "--image", str(picture), **variables) as chat:
            chat.expect("image: ")
            chat.expect("> ")
            chat.type("What?\r")
            chat.expect(r"\(thinking\)\r\nHm\r\n\r\n\(answer\)\r\nRed\.\r\n")
            chat.expect("> ")
            assert "▀" not in chat.seen
            assert not re.search(r"\x1b\[[\d;]*m", chat.seen)


def test_lines_are_remembered_for_the_next_chat(
    server: ScriptedServer, start: Start, tmp_path: Path
) -> None:
    server.script += [answer("Hi."), answer("Hi again.")]
    with start("--base-url", server.url) as chat:
        chat.expect(PROMPT)
        chat.type("Good morning\r")
        chat.expect("Hi.")
        chat.type("/quit\r")
        assert chat.ended() == 0
    history = tmp_path / "state" / "glimt" / "chat_history"
    assert history.read_text().splitlines() == ["Good morning", "/quit"]
    assert history.stat().st_mode & 0o077 == 0
    with start("--base-url", server.url) as chat:
        chat.expect(PROMPT)
        chat.type("\x1b[A\x1b[A\r")  # up, up
        chat.expect("Hi again.")
    assert texts(server.requests[-1]) == ["Good morning"]


def test_unknown_commands_and_the_tab_key_help(
    server: ScriptedServer, start: Start, picture: Path
) -> None:
    with start("--base-url", server.url) as chat:
        chat.expect(PROMPT)
        chat.type("/imgae x\r")
        chat.expect(r"/imgae is no command; did you mean /image\?")
        chat.expect(PROMPT)
        chat.type(f"/im\t{picture.parent}/re\t\r")
        chat.expect(f"image: {picture}, 4 × 2")
        chat.type("/help\r")
        chat.expect("/thinking .*on|off")
        assert server.requests == []
