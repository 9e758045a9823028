"""What `glimt quantize` makes: the published layout, and the numbers of `--quantization fp8`."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor

from glimt.cli import main
from glimt.models.config_json import read_config
from glimt.quantization.command import Wishes, quantize
from glimt.quantization.scheme import ignored
from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.support.checkpoints import assert_same_parameters, loaded, store, stored_tensors

TEXT = "model.language_model.layers"
CLASSES = {"moe": "Glm4vMoeForConditionalGeneration", "dense": "Glm4vForConditionalGeneration"}


def run(source: Path, target: Path, **wishes: Any) -> tuple[int, str]:
    lines: list[str] = []
    status = quantize(
        Wishes(source=str(source), target=str(target), progress=False, **wishes), lines.append
    )
    return status, "\n".join(lines)


@pytest.fixture(scope="module", params=["moe", "dense"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def source(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp(kind) / "bf16", variant=kind, shards=3)
    (folder / "README.md").write_text("A model.\n")
    (folder / "LICENSE").write_text("Do.\n")
    return folder


@pytest.fixture(scope="module")
def target(source: Path) -> Path:
    target = source.with_name("fp8")
    assert run(source, target)[0] == 0
    return target


@pytest.fixture
def moe(tmp_path: Path) -> Path:
    return make_tiny_checkpoint(tmp_path / "moe")


def test_loading_it_equals_quantising_while_loading_bit_for_bit(source: Path, target: Path) -> None:
    stored, stored_plan = loaded(target)
    made, made_plan = loaded(source, quantization="fp8")
    assert_same_parameters(stored, made)
    assert stored_plan.fp8 == made_plan.quantized_here
    assert stored_plan.format == "fp8"


def test_its_tensors_are_those_of_an_fp8_checkpoint(
    kind: str, target: Path, tmp_path: Path
) -> None:
    """Names, types, shapes and values against the tiny FP8 checkpoint, which is made otherwise."""
    published = stored_tensors(make_tiny_checkpoint(tmp_path / "fp8", variant=kind, fp8=True))
    ours = stored_tensors(target)
    assert ours.keys() == published.keys()
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (published[name].dtype, published[name].shape), name
        assert torch.equal(tensor.float(), published[name].float()), name
    scales = [tensor for name, tensor in ours.items() if name.endswith("_scale")]
    assert scales
    assert all(scale.dtype == torch.float32 and scale.shape[1:] == (1,) for scale in scales)


def test_files_and_index_are_as_the_hub_has_them(source: Path, target: Path) -> None:
    index = json.loads((target / "model.safetensors.index.json").read_text())
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(index["weight_map"].values())):
        assert (source / file).exists()
        with safe_open(target / file, framework="pt") as handle:
            assert handle.metadata() == {"format": "pt"}
            for name in handle.keys():  # noqa: SIM118 (not a dict)
                assert index["weight_map"][name] == file
                tensors[name] = handle.get_tensor(name)
    assert tensors.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())


def test_all_other_files_come_along(source: Path, target: Path) -> None:
    names = {path.name for path in source.iterdir()}
    assert {path.name for path in target.iterdir()} == names
    for name in names:
        if "safetensors" not in name and name != "config.json":
            assert (target / name).read_bytes() == (source / name).read_bytes()
    config = json.loads((target / "config.json").read_text())
    scheme = config.pop("quantization_config")
    assert config == json.loads((source / "config.json").read_text())
    assert scheme["quant_method"] == "compressed-tensors"
    assert read_config(config | {"quantization_config": scheme}).quantized


def test_code_and_foreign_weights_are_never_copied(moe: Path, tmp_path: Path) -> None:
    for name in ("modeling.py", "pytorch_model.bin", "pytorch_model.bin.index.json", ".hidden"):
        (moe / name).write_text("{}")
    (moe / "figures").mkdir()
    status, text = run(moe, tmp_path / "fp8")
    assert status == 0
    assert not {"modeling.py", "pytorch_model.bin", ".hidden", "figures"} & set(
        os.listdir(tmp_path / "fp8")
    )
    assert "pytorch_model.bin.index.json" not in os.listdir(tmp_path / "fp8")
    assert "modeling.py is not copied" in text


def test_a_link_out_of_the_folder_is_not_followed(moe: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (moe / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(Exception, match="leads out of the folder"):
        run(moe, tmp_path / "fp8")
    assert not (tmp_path / "fp8").exists()


def test_the_ignore_list_at_full_size_has_the_published_527_names(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 46
    config["vision_config"]["depth"] = 24
    names = list(ignored(read_config(config)))
    assert len(names) == len(set(names))
    if "n_routed_experts" in config["text_config"]:
        assert len(names) == 527
        assert sum(name.startswith("visual.blocks.") for name in names) == 192
    for name in (
        "lm_head",
        "model.layers.45.self_attn.q_proj.bias",
        "visual.blocks.23.attn.qkv_proj",
        "visual.merger.post_projection_norm.bias",
    ):
        assert name in names


def test_transformers_finds_every_tensor_of_the_dense_one(kind: str, target: Path) -> None:
    """Text linears come in FP8 with their scales, the vision tower as it was; nothing missing.

    For the mixture of experts transformers cannot: it stacks the experts without their scales.
    """
    pytest.importorskip("compressed_tensors")
    if kind == "moe":
        pytest.skip("transformers drops the scales of stacked experts")
    cls = getattr(transformers, CLASSES[kind])
    model, info = cls.from_pretrained(target, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    stored = stored_tensors(target)
    layer = model.model.language_model.layers[1]
    for name, linear in (
        (f"{TEXT}.1.self_attn.q_proj", layer.self_attn.q_proj),
        (f"{TEXT}.1.mlp.gate_up_proj", layer.mlp.gate_up_proj),
        (f"{TEXT}.1.mlp.down_proj", layer.mlp.down_proj),
    ):
        assert torch.equal(linear.weight.float(), stored[f"{name}.weight"].float())
        assert torch.equal(linear.weight_scale, stored[f"{name}.weight_scale"])
    tower = model.model.visual
    assert tower.blocks[0].attn.qkv.weight.dtype == torch.float32
    assert tower.merger.gate_proj.weight.dtype == torch.float32
    assert model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_float_types_are_quantised_as_at_load(
    dtype: torch.dtype, moe: Path, tmp_path: Path
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in stored_tensors(moe).items()}
    store(moe, tensors, dict.fromkeys(tensors, "model.safetensors"))
    assert run(moe, tmp_path / "fp8", verify=True)[0] == 0
    assert_same_parameters(loaded(tmp_path / "fp8")[0], loaded(moe, quantization="fp8")[0])


def test_other_spellings_come_out_under_the_published_names(moe: Path, tmp_path: Path) -> None:
    other = shutil.copytree(moe, tmp_path / "other")
    tensors = {
        name.replace("model.language_model.", "language_model.model.").replace(
            "model.visual.", "visual."
        ): tensor
        for name, tensor in stored_tensors(moe).items()
    }
    store(other, tensors, dict.fromkeys(tensors, "model.safetensors"))
    (other / "model.safetensors.index.json").unlink()
    assert run(moe, tmp_path / "one")[0] == run(other, tmp_path / "two")[0] == 0
    ours, theirs = stored_tensors(tmp_path / "one"), stored_tensors(tmp_path / "two")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].float(), theirs[name].float()) for name in ours)


def test_the_command_line_does_it(
    moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["quantize", str(moe), str(tmp_path / "new" / "fp8"), "--verify"])
    assert not ended.value.code
    out, err = capsys.readouterr()
    assert out == ""
    assert "quantise: 100%" in err
    assert "verified: 69 modules" in err
    assert loaded(tmp_path / "new" / "fp8")[1].format == "fp8"
