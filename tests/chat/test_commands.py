"""Commands, their nearest neighbours, and what the tab key makes of a line."""

from pathlib import Path

import pytest

from glimt.chat.commands import COMMANDS, HELP, BadCommand, complete, names_in, parse


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        ("/clear", ("clear", "")),
        ("/image a.png", ("image", "a.png")),
        ("/SYSTEM  Be brief. ", ("system", "Be brief.")),
        ("/exit", ("quit", "")),
        ("/?", ("help", "")),
    ],
)
def test_a_command_has_a_name_and_an_argument(line: str, parsed: tuple[str, str]) -> None:
    assert parse(line) == parsed


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("/imagee x", "/image?"),
        ("/thinkin off", "/thinking?"),
        ("/sav", "/save?"),
        ("/zzz", "/help lists them"),
        ("/", "/help lists them"),
        ("/image", "needs FILE"),
        ("/clear all", "takes nothing"),
    ],
)
def test_what_is_no_command_gets_the_nearest_one_or_the_reason(line: str, hint: str) -> None:
    with pytest.raises(BadCommand, match=hint.replace("?", r"\?")):
        parse(line)


def test_a_file_dropped_on_the_terminal_gets_its_command(tmp_path: Path) -> None:
    file = tmp_path / "cat.png"
    file.touch()
    with pytest.raises(BadCommand, match=f"/image {file}"):
        parse(str(file))


def test_files_may_have_spaces_or_be_several(tmp_path: Path) -> None:
    file = tmp_path / "my cat.png"
    file.touch()
    assert names_in(str(file)) == [str(file)]
    assert names_in(f"'{file}' b.png") == [str(file), "b.png"]
    assert names_in("it's") == ["it's"]
    assert names_in("https://example.com/a.png b.png") == ["https://example.com/a.png", "b.png"]


def test_help_lists_every_command() -> None:
    assert all(f"/{command.name} " in HELP for command in COMMANDS)


def test_the_tab_key_completes_commands_and_files(tmp_path: Path) -> None:
    (tmp_path / "cat.png").touch()
    (tmp_path / "cats").mkdir()
    (tmp_path / ".hidden").touch()
    assert complete("/s") == ["/system ", "/save "]
    assert complete(f"/image {tmp_path}/ca") == [f"{tmp_path}/cat.png", f"{tmp_path}/cats/"]
    assert complete(f"/image a.png {tmp_path}/cat.") == [f"{tmp_path}/cat.png"]
    assert f"{tmp_path}/.hidden" not in complete(f"/image {tmp_path}/")
    assert complete(f"/image {tmp_path}/missing/") == []
    assert complete(f"/system {tmp_path}/ca") == []
    assert complete("cat") == []
