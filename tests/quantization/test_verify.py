"""`--verify` and `--verify-only`: true errors, and every damage is found."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glimt.quantization.workspace import Workspace
from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.quantization.test_result import run
from tests.support.checkpoints import loaded, stored_tensors


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("verify") / "bf16", shards=2)


@pytest.fixture(scope="module")
def target(source: Path) -> Path:
    assert run(source, source.with_name("fp8"))[0] == 0
    return source.with_name("fp8")


def test_the_report_holds_each_modules_error_worst_first(
    source: Path, target: Path, tmp_path: Path
) -> None:
    status, text = run(source, target, verify_only=True, json=str(tmp_path / "report.json"))
    assert status == 0
    report = json.loads((tmp_path / "report.json").read_text())
    was, made = stored_tensors(source), stored_tensors(target)
    scales = [name for name in made if name.endswith("_scale")]
    assert len(report["modules"]) == len(scales)
    assert report["num_unchanged"] == len(made) - 2 * len(scales)
    assert report["problems"] == []
    errors = [module["relative_rms_error"] for module in report["modules"]]
    assert errors == sorted(errors, reverse=True)
    for module in report["modules"]:
        name = f"{module['module']}.weight"
        weight = was[name].double()
        error = made[name].double() * made[f"{name}_scale"].double() - weight
        assert module["max_error"] == pytest.approx(float(error.abs().max()), rel=1e-4)
        assert module["relative_rms_error"] == pytest.approx(
            float(error.norm() / weight.norm()), rel=1e-4
        )
        assert 0.01 < module["relative_rms_error"] < 0.04  # of e4m3: three bits behind the point
    assert report["modules"][0]["module"] in text
    assert text.index(report["modules"][0]["module"]) < text.index(report["modules"][9]["module"])


@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_a_flipped_byte_anywhere_in_the_weights_is_found(
    source: Path, target: Path, data: st.DataObject
) -> None:
    file = data.draw(st.sampled_from(sorted(target.glob("*.safetensors"))))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    whole = file.read_bytes()
    try:
        file.write_bytes(content)
        status, text = run(source, target, verify_only=True)
    finally:
        file.write_bytes(whole)
    assert status == 1
    assert f"WRONG: {file.name}" in text


def test_what_fails_its_verification_never_becomes_the_target(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that lies: the file changes after it was written. The next run makes it again."""
    target = tmp_path / "fp8"
    add = Workspace.add

    def damage(workspace: Workspace, shard: object, write: object) -> None:
        add(workspace, shard, write)  # type: ignore[arg-type]
        file = workspace.folder / shard.name  # type: ignore[attr-defined]
        if file.name.startswith("model-00001"):
            content = bytearray(file.read_bytes())
            content[-1] ^= 4
            file.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "add", damage)
        status, text = run(source, target, verify=True)
    assert status == 1
    assert "was not made" in text
    assert not target.exists()
    status, text = run(source, target, verify=True)
    assert status == 0
    assert "1 files are finished by an earlier run" in text
    assert loaded(target)[1].format == "fp8"


def test_a_target_of_another_model_is_not_verified(source: Path, tmp_path: Path) -> None:
    other = make_tiny_checkpoint(tmp_path / "other", seed=1)
    run(other, tmp_path / "fp8")
    status, text = run(source, tmp_path / "fp8", verify_only=True)
    assert status == 1
    assert "is not what quantising the source gives" in text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", None, "WRONG: tokenizer.json is missing"),
        ("config.json", "{}", "WRONG: config.json: its quantization_config"),
        ("config.json", None, "WRONG: config.json: its quantization_config"),
        ("model.safetensors.index.json", '{"weight_map": {}}', "WRONG: model.safetensors.index"),
        ("chat_template.jinja", "mine", "note: chat_template.jinja differs from the source's"),
        ("older.safetensors", "x", "note: older.safetensors does not belong to it"),
    ],
)
def test_the_files_beside_the_weights_are_verified(
    name: str, content: str | None, said: str, source: Path, target: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(target, tmp_path / "copy")
    (copy / name).unlink(missing_ok=True)
    if content is not None:
        (copy / name).write_text(content)
    status, text = run(source, copy, verify_only=True)
    assert said in text
    assert status == (1 if "WRONG" in said else 0)


def test_torchs_threads_are_as_before(source: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    run(source, tmp_path / "fp8")
    assert torch.get_num_threads() == before
