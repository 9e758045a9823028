"""Checkpoints that do not fit or are damaged: one error before any memory is taken."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glimt.errors import BadCheckpoint
from glimt.models.weights import inspect
from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.support.checkpoints import (
    config_of,
    loaded,
    one_file,
    store,
    stored_tensors,
    write_index,
)

TEXT = "model.language_model.layers"
FIRST, LAST = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("moe"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "model")


@pytest.fixture
def fp8(tmp_path: Path) -> Path:
    return make_tiny_checkpoint(tmp_path / "fp8", fp8=True)


def refusal(folder: Path) -> BadCheckpoint:
    with pytest.raises(BadCheckpoint) as caught:
        inspect(folder, config_of(folder))
    return caught.value


# -------------------------------------------------------------------- whole files, wrong content


def test_every_misfit_is_named_in_one_error(folder: Path) -> None:
    tensors = stored_tensors(folder)
    attention = f"{TEXT}.1.self_attn"
    del tensors[f"{attention}.v_proj.weight"]
    del tensors["model.visual.merger.proj.weight"]
    tensors["model.visual.blocks.0.attn.proj.bias"] = torch.zeros(256)
    tensors[f"{attention}.q_proj.weight"] = tensors[f"{attention}.q_proj.weight"].T
    tensors["model.language_model.norm.weight"] = torch.ones(129, dtype=torch.bfloat16)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].double()
    tensors[f"{attention}.k_proj.bias"] = tensors[f"{attention}.k_proj.bias"].to(torch.int8)
    store(folder, tensors, one_file(tensors))
    error = refusal(folder)
    assert "2 missing, 1 unexpected, 2 misshaped, 2 of the wrong type" in error.message
    assert set(error.problems) == {
        f"{attention}.v_proj.weight is missing; expected [256, 128]",
        "model.visual.merger.proj.weight is missing; expected [128, 128]",
        "model.visual.blocks.0.attn.proj.bias is not part of this model",
        f"{attention}.q_proj.weight has shape [128, 512], expected [512, 128] (transposed?)",
        "model.language_model.norm.weight has shape [129], expected [128]",
        "lm_head.weight is F64, expected BF16 or F16 or F32",
        f"{attention}.k_proj.bias is I8, expected BF16 or F16 or F32",
    }


def test_a_long_list_is_cut_but_counted(folder: Path) -> None:
    kept = {n: t for n, t in stored_tensors(folder).items() if ".mlp." not in n}
    missing = len(stored_tensors(folder)) - len(kept)
    store(folder, kept, one_file(kept))
    error = refusal(folder)
    assert f"{missing} missing" in error.message
    assert error.problems[-1] == f"… and {missing - 20} more like these"
    assert len(error.problems) == 21


def test_only_known_leftovers_of_drafting_layers_are_passed_over(folder: Path) -> None:
    tensors = stored_tensors(folder)
    tensors["model.language_model.layers.46.eh_proj.weight"] = torch.ones(2, 2)
    tensors["model.layers.92.shared_head.norm.weight"] = torch.ones(2)
    store(folder, tensors, one_file(tensors))
    loaded(folder)
    tensors["model.language_model.layers.47.eh_proj.weight"] = torch.ones(2, 2)
    tensors[f"{TEXT}.3.input_layernorm.weight"] = torch.ones(128)
    store(folder, tensors, one_file(tensors))
    assert "2 unexpected" in refusal(folder).message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("scale missing", "o_proj.weight is F8_E4M3, expected BF16 or F16 or F32, or"),
        ("one of three scales missing", "k_proj.weight_scale is missing, though layers.0.att"),
        ("scale per block", "has shape [1, 4], expected [128, 1]"),
        ("scale in FP8", "o_proj.weight_scale is F8_E4M3"),
        ("scale but no FP8", "o_proj.weight is BF16, expected F8_E4M3"),
        ("scale of a vision weight", "proj.weight_scale is not part of this model"),
    ],
)
def test_half_made_fp8_is_refused(fp8: Path, change: str, words: str) -> None:
    tensors = stored_tensors(fp8)
    weight = f"{TEXT}.0.self_attn.o_proj.weight"
    if change == "scale missing":
        del tensors[f"{weight}_scale"]
    elif change == "one of three scales missing":
        del tensors[f"{TEXT}.0.self_attn.k_proj.weight_scale"]
    elif change == "scale per block":
        tensors[f"{weight}_scale"] = torch.ones(1, 4)
    elif change == "scale in FP8":
        tensors[f"{weight}_scale"] = torch.ones(128, 1).to(torch.float8_e4m3fn)
    elif change == "scale but no FP8":
        tensors[weight] = tensors[weight].bfloat16()
    else:
        tensors["model.visual.blocks.0.attn.proj.weight_scale"] = torch.ones(256, 1)
    store(fp8, tensors, one_file(tensors))
    assert any(words in problem for problem in refusal(fp8).problems)


@pytest.mark.parametrize("suffix", ["weight_scale_inv", "qweight", "input_scale", "weight_packed"])
def test_other_quantisations_are_refused_in_plain_words(folder: Path, suffix: str) -> None:
    tensors = stored_tensors(folder)
    tensors[f"{TEXT}.0.self_attn.o_proj.{suffix}"] = torch.ones(1, 1)
    store(folder, tensors, one_file(tensors))
    error = refusal(folder)
    assert "quantised in a way Glimt does not read" in error.message
    assert f"o_proj.{suffix}" in error.message


def test_the_same_tensor_under_two_spellings_is_refused(folder: Path) -> None:
    tensors = stored_tensors(folder)
    tensors["model.norm.weight"] = tensors["model.language_model.norm.weight"].clone()
    store(folder, tensors, one_file(tensors))
    assert "model.norm.weight" in refusal(folder).message


# ---------------------------------------------------------------------------- index and files


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / FIRST).unlink()
    assert f"{FIRST} is missing" in refusal(folder).message


def test_an_index_and_files_that_disagree_are_named(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    index["lm_head.weight"] = FIRST
    index["ghost.weight"] = LAST
    del index["model.language_model.norm.weight"]
    write_index(folder, index)
    message = refusal(folder).message
    assert f"lm_head.weight should lie in {FIRST} (says the index) and does not" in message
    assert f"lm_head.weight lies in {LAST}, but the index says {FIRST}" in message
    assert f"ghost.weight should lie in {LAST}" in message
    assert f"model.language_model.norm.weight lies in {LAST}, but not in the index" in message


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    shutil.copy(folder / LAST, folder / "model-00003-of-00003.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    assert "lm_head.weight is stored twice" in refusal(folder).message


def test_a_folder_without_weights_says_what_is_looked_for(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "there are no weights" in refusal(folder).message


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "a\n.safetensors",
        "a\0.safetensors",
        "model.bin",
        7,
    ],
)
def test_an_index_never_leads_out_of_the_folder(folder: Path, name: str) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shutil.copy(folder / LAST, folder.parent / "secret.safetensors")
    index["lm_head.weight"] = name
    write_index(folder, index)
    refusal(folder)


def test_a_shard_that_is_a_link_to_outside_or_a_pipe_is_refused(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    shutil.move(folder / LAST, outside)
    (folder / LAST).symlink_to(outside)
    assert "leads out of the folder" in refusal(folder).message
    (folder / LAST).unlink()
    os.mkfifo(folder / LAST)
    assert "is not a regular file" in refusal(folder).message


@pytest.mark.parametrize("content", [b"{}", b'{"weight_map": {}}', b'{"weight_map": [1]}', b"{"])
def test_a_broken_index_is_named(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors.index.json").write_bytes(content)
    assert "model.safetensors.index.json" in refusal(folder).message


# ------------------------------------------------------------------------------- single files


@pytest.mark.parametrize("tenths", range(10))
def test_a_file_cut_off_anywhere_is_named(folder: Path, tenths: int) -> None:
    size = (folder / FIRST).stat().st_size
    os.truncate(folder / FIRST, size * tenths // 10)
    assert FIRST in refusal(folder).message


def test_a_file_with_one_byte_less_or_more_is_named(folder: Path) -> None:
    content = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(content[:-1])
    assert "1 bytes of weights are missing" in refusal(folder).message
    (folder / FIRST).write_bytes(content + b"x")
    assert "1 bytes belong to no tensor" in refusal(folder).message


def entry(start: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "does not begin with an object"),
        (b"[]", "does not begin with an object"),
        (b'{"a"', "corrupt header"),
        (b'{"\xff": 1}', "corrupt header"),
        (b'{"a": {}, "a": {}}', "'a' occurs twice"),
        (b'{"a": 3}', "not described by an object"),
        (b'{"a":' * 100_000, "corrupt header"),
        ({"a": entry(0, 8, [8], "F4")}, "unknown type 'F4'"),
        ({"a": entry(0, 8, [9])}, "needs 9 bytes and has 8"),
        ({"a": entry(0, 8, [-8])}, "has shape"),
        ({"a": entry(8, 0, [8])}, "needs 8 bytes and has -8"),
        ({"a": entry(0, 8, [2**62, 2**62])}, "needs"),
        ({"a": entry(0, 8, [True, 8])}, "has shape"),
        ({"a": entry(0, 6, [6]), "b": entry(4, 8, [4])}, "b overlaps"),
        ({"a": entry(0, 2, [2]), "b": entry(4, 8, [4])}, "b lies behind a gap"),
        ({"a": entry(0, 2**40, [2**40])}, "bytes of weights are missing"),
        ({"a": entry(0, 4, [4])}, "4 bytes belong to no tensor"),
    ],
)
def test_a_lying_header_is_refused(folder: Path, header: object, words: str) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / FIRST).write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
    message = refusal(folder).message
    assert FIRST in message
    assert words in message


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40])
def test_an_absurd_header_length_is_refused(folder: Path, length: int) -> None:
    content = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(length.to_bytes(8, "little") + content[8:])
    assert "is cut off" in refusal(folder).message


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_damage_in_a_header_is_refused_or_harmless_but_never_a_crash(
    folder: Path, original: Path, data: st.DataObject
) -> None:
    content = bytearray((original / FIRST).read_bytes())
    header_bytes = int.from_bytes(content[:8], "little")
    change: Callable[[bytearray, int], None] = data.draw(st.sampled_from([flip, remove, double]))
    for _ in range(data.draw(st.integers(1, 3))):
        change(content, data.draw(st.integers(0, header_bytes + 7)))
    (folder / FIRST).write_bytes(content)
    try:
        plan = inspect(folder, config_of(folder))
    except BadCheckpoint:
        return
    assert plan.num_bytes == inspect(original, config_of(original)).num_bytes


def flip(content: bytearray, at: int) -> None:
    content[at] ^= 1 << (at % 8)


def remove(content: bytearray, at: int) -> None:
    del content[at]


def double(content: bytearray, at: int) -> None:
    content.insert(at, content[at])


def test_code_in_the_folder_is_never_run(folder: Path) -> None:
    canary = folder.parent / "canary"
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nEvil = None\n")
    (folder / "pytorch_model.bin").write_bytes(
        b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
    )
    loaded(folder)
    assert not canary.exists()
