"""Kills, changed sources, full disks, two runs at once: DST is whole or it is not there."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from glimt.cli import main
from glimt.errors import BadCheckpoint, BadSettings, StartupError
from glimt.quantization import command
from glimt.quantization.workspace import JOURNAL
from glimt.quantization.write import write_shard
from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.quantization.test_result import run
from tests.support.checkpoints import store, stored_tensors

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("interrupted") / "bf16", shards=3)


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "bf16")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "fp8"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupt(monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int) -> None:
    """The next file after `after` finished ones ends with `error`, half-written."""
    written = 0

    def write(shard: Any, path: Path, advance: Any) -> None:
        nonlocal written
        if written == after:
            path.write_bytes(shard.header)
            raise error
        written += 1
        write_shard(shard, path, advance)

    monkeypatch.setattr(command, "write_shard", write)


def begin(source: Path, target: Path, after: int = 1, **wishes: Any) -> None:
    """A run that ends after some files."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, KeyboardInterrupt(), after)
        assert run(source, target, **wishes)[0] == 130


# ------------------------------------------------------------------------------------- kills


@pytest.mark.parametrize(
    ("step", "last", "overwrite"),
    [
        pytest.param(61, 10, False, id="some"),
        pytest.param(1, 0, True, id="all", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
def test_a_run_killed_at_any_system_call_goes_on_to_the_same_result(
    step: int, last: int, overwrite: bool, made: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    arguments = {"source": str(made), "folder": str(tmp_path / "folder")}
    arguments |= {"step": step, "last": last, "overwrite": overwrite}
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    killer = subprocess.run(
        [sys.executable, "-m", "tests.quantization.killer", tmp_path / "arguments.json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert killer.returncode == 0, killer.stderr[-3000:]
    result = json.loads(killer.stdout)
    assert result["calls"] > 150
    assert result["trials"] >= result["calls"] // step


def test_finished_files_are_not_made_again(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(source, target, after=2)
    assert not target.exists()
    made_now = []

    def write(shard: Any, path: Path, advance: Any) -> None:
        made_now.append(shard.name)
        write_shard(shard, path, advance)

    monkeypatch.setattr(command, "write_shard", write)
    status, text = run(source, target)
    assert status == 0
    assert made_now == ["model-00003-of-00003.safetensors"]
    assert "2 files are finished by an earlier run" in text
    run(source, target.with_name("undisturbed"))
    assert content(target) == content(target.with_name("undisturbed"))
    assert set(os.listdir(target.parent)) == {"fp8", "undisturbed"}


@pytest.mark.parametrize("damage", ["cut", "header", "gone", "unjournaled", "torn journal"])
def test_a_finished_file_that_is_not_whole_is_made_again(
    damage: str, source: Path, target: Path
) -> None:
    begin(source, target, after=2)
    partial = target.with_name("fp8.partial")
    file, journal = partial / "model-00001-of-00003.safetensors", partial / JOURNAL
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[:-1])
    elif damage == "header":
        file.write_bytes(whole.replace(b"self_attn", b"self_attm", 1))
    elif damage == "gone":
        file.unlink()
    elif damage == "unjournaled":
        journal.write_bytes(journal.read_bytes().split(b"\n")[0] + b"\n")
    else:
        journal.write_bytes(journal.read_bytes()[:-3])
    status, text = run(source, target, verify=True)
    assert status == 0
    assert ("1 files are finished" in text) == (damage != "unjournaled")
    run(source, target.with_name("undisturbed"))
    assert content(target) == content(target.with_name("undisturbed"))


def test_ctrl_c_says_how_to_go_on(source: Path, target: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, KeyboardInterrupt(), 1)
        status, text = run(source, target)
    assert status == 130
    assert "the same command goes on after 1 finished files" in text


# ------------------------------------------------------------------------------ the source changes


def change_a_weight(folder: Path) -> None:
    tensors = stored_tensors(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors["model.language_model.layers.0.self_attn.q_proj.weight"][0, 0] += 1
    store(folder, tensors, index["weight_map"])


def test_a_source_that_changed_since_is_noticed(source: Path, target: Path) -> None:
    begin(source, target)
    change_a_weight(source)
    with pytest.raises(BadSettings, match="the source has changed since"):
        run(source, target)
    status, text = run(source, target, overwrite=True)
    assert status == 0
    assert "earlier run" not in text
    run(source, target.with_name("undisturbed"))
    assert content(target) == content(target.with_name("undisturbed"))


def test_a_source_that_changes_while_it_is_read_is_noticed(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(shard: Any, path: Path, advance: Any) -> None:
        write_shard(shard, path, advance)
        os.utime(shard.source, ns=(0, shard.source.stat().st_mtime_ns + 1))

    monkeypatch.setattr(command, "write_shard", write)
    with pytest.raises(BadCheckpoint, match="was changed while it was read"):
        run(source, target)
    assert not target.exists()


def test_a_weight_that_is_not_finite_is_named(source: Path, target: Path) -> None:
    tensors = stored_tensors(source)
    name = "model.language_model.layers.1.mlp.experts.3.up_proj.weight"
    tensors[name][5, 7] = float("nan")
    store(source, tensors, dict.fromkeys(tensors, "model.safetensors"))
    with pytest.raises(BadCheckpoint, match=f"{name} .* not finite in row 5"):
        run(source, target)
    assert not target.exists()


# ------------------------------------------------------------------------------------- the disk


def test_too_small_a_disk_is_refused_with_the_numbers(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 5_000_000))
    with pytest.raises(StartupError, match=r"7\d\.\d MB more .* 5\.0 MB are free: 6\d\.\d MB"):
        run(source, target)
    assert not target.exists()


def test_a_disk_that_fills_up_is_an_error_one_can_go_on_from(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, OSError(errno.ENOSPC, "No space left on device", "x"), 1)
        with pytest.raises(StartupError, match=r"No space left .* after 1 finished files"):
            run(source, target)
    assert not target.exists()
    assert "1 files are finished" in run(source, target)[1]


# ------------------------------------------------------------------------------------ refusals


def test_an_existing_target_is_only_replaced_when_asked_to(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "config.json").write_text("mine")
    with pytest.raises(BadSettings, match="exists; --overwrite replaces it"):
        run(source, target)
    assert content(target) == {"config.json": b"mine"}
    begin(source, target, overwrite=True)
    assert content(target) == {"config.json": b"mine"}  # until the new one is whole
    assert run(source, target, overwrite=True)[0] == 0
    assert (target / "model.safetensors.index.json").exists()
    assert os.listdir(target.parent) == ["fp8"]


def test_folders_that_are_no_checkpoints_are_never_replaced(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(BadSettings, match="is not the folder of a checkpoint"):
        run(source, target, overwrite=True)
    assert content(target) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("name", ["fp8.partial", "fp8.replaced"])
def test_a_folder_in_the_way_is_left_alone(name: str, source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "config.json").write_text("old")
    (target.with_name(name)).mkdir()
    (target.with_name(name) / "thesis.tex").write_text("years of work")
    with pytest.raises(BadSettings, match="move it elsewhere"):
        run(source, target, overwrite=True)
    assert content(target.with_name(name)) == {"thesis.tex": b"years of work"}


def test_a_place_where_nothing_can_be_written_is_refused(source: Path) -> None:
    with pytest.raises(BadSettings, match=r"/proc/glimt-fp8\.partial cannot be made"):
        run(source, Path("/proc/glimt-fp8"))


def test_two_runs_for_one_target_exclude_each_other(source: Path, target: Path) -> None:
    begin(source, target)
    with (target.with_name("fp8.partial") / JOURNAL).open("rb") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        with pytest.raises(BadSettings, match="another glimt quantize is working"):
            run(source, target)
    assert run(source, target)[0] == 0


@pytest.mark.parametrize("place", [".", "fp8", ".."])
def test_source_and_target_lie_beside_each_other(place: str, source: Path) -> None:
    with pytest.raises(BadSettings):
        run(source, source / place, overwrite=True)
    assert set(os.listdir(source.parent)) == {"bf16"}


def test_an_fp8_checkpoint_is_not_quantised_again(tmp_path: Path, target: Path) -> None:
    fp8 = make_tiny_checkpoint(tmp_path / "published", fp8=True)
    with pytest.raises(BadCheckpoint, match=r"is already in FP8 \(14 of 14 linears\)"):
        run(fp8, target)
    assert not target.parent.exists()


@pytest.mark.parametrize(
    "wishes",
    [
        {"json": "report.json"},
        {"json": "/nowhere/report.json", "verify": True},
        {"verify_only": True},
        {"verify_only": True, "overwrite": True},
    ],
)
def test_wishes_that_cannot_come_true_are_refused_first(
    wishes: dict[str, Any], source: Path, target: Path
) -> None:
    with pytest.raises(BadSettings, match="nothing was done"):
        run(source, target, **wishes)


def test_refusals_leave_with_2_and_one_plain_message(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["quantize", str(source / "nothing"), str(source / "fp8")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("glimt: ")
