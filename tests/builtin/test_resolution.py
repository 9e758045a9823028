"""The built-in model is found under its name by every command, or its absence explained."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from glimt import LLM, SamplingParams
from glimt.builtin import model as builtin
from glimt.builtin.defaults import with_defaults
from glimt.chat.image_tokens import image_token_counter
from glimt.cli import main
from glimt.config import ModelSettings, ServerSettings, Settings
from glimt.config_check import check
from glimt.errors import BadCheckpoint, StartupError
from glimt.hub import locate
from glimt.processes.launch import resolve
from glimt.quantization.command import Wishes, quantize
from glimt.tiny.checkpoint import make_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def installed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny checkpoint in the built-in model's place."""
    monkeypatch.setattr(builtin, "FOLDER", tiny)
    return tiny


def silent(line: str) -> None:
    pass


def test_the_name_leads_to_the_folder_and_a_path_to_a_folder_of_that_name(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "builtin").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("builtin") == installed
    assert locate("./builtin") == Path("builtin")
    with pytest.raises(BadCheckpoint, match="the built-in model is 'builtin'"):
        locate("glimt-builtin")  # what servers call it


def test_it_is_served_with_its_thoughts_and_tools_told_apart(installed: Path) -> None:
    settings = with_defaults(Settings(model="builtin"))
    check(settings)
    plan = resolve(settings, silent)
    assert plan.server.model_path == str(installed)
    assert plan.server.served_model_names == ("glimt-builtin",)
    assert plan.server.reasoning_parser == "glm45"
    assert plan.server.tool_call_parser == "glm45"
    assert plan.server.auto_tool_choice


def test_what_the_user_says_goes_before() -> None:
    settings = Settings(
        model="builtin",
        models=ModelSettings(served_model_name=["mine"]),
        server=ServerSettings(tool_call_parser="glm47"),
    )
    resolved = with_defaults(settings)
    assert resolved.models.served_model_name == ["mine"]
    assert resolved.server.tool_call_parser == "glm47"
    assert not resolved.server.enable_auto_tool_choice
    other = Settings(model="other")
    assert with_defaults(other) == other


@pytest.mark.parametrize("arguments", [(), ("builtin",)])
def test_offline_it_needs_no_name(installed: Path, arguments: tuple[str, ...]) -> None:
    with LLM(*arguments, max_model_len=256, max_num_seqs=2) as llm:
        [output] = llm.chat([{"role": "user", "content": "Hi"}], SamplingParams(max_tokens=2))
    assert output.outputs[0].token_ids


def test_it_can_be_quantised(installed: Path, tmp_path: Path) -> None:
    wishes = Wishes(source="builtin", target=str(tmp_path / "fp8"), progress=False)
    assert quantize(wishes, silent) == 0
    assert (tmp_path / "fp8" / "config.json").exists()


def test_a_chat_with_it_foretells_tokens(installed: Path) -> None:
    assert image_token_counter("builtin")(84, 56) == image_token_counter(str(installed))(84, 56)


@pytest.mark.parametrize(
    "command",
    [
        ["serve", "--port", "0"],
        ["serve", "builtin", "--port", "0"],
        ["chat"],
        ["quantize", "builtin", "never-made"],
    ],
)
def test_an_incomplete_installation_is_explained(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.json").touch()
    monkeypatch.setattr(builtin, "FOLDER", tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert f"{tmp_path} lacks tokenizer.json, chat_template.jinja, *.safetensors" in message
    assert "Install Glimt again" in message


def test_offline_an_incomplete_installation_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "FOLDER", tmp_path / "missing")
    with pytest.raises(StartupError, match="Install Glimt again"):
        LLM()


def test_its_files_are_declared_as_data_of_the_package() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["packages"] == ["glimt"]
    for name in ("config.json", "model-00001-of-00002.safetensors", "tokenizer.json"):
        file = Path("glimt", "builtin", "model", name)
        assert any(fnmatch(str(file), pattern) for pattern in build["artifacts"])
        assert builtin.__file__ is not None
        assert (
            Path(builtin.__file__).parents[2] / file
            == Path(builtin.__file__).parent / "model" / name
        )
