"""The exported folder: hub names and dtypes, read by the server and by transformers alike."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Glm4vMoeForConditionalGeneration

from glimt.checkpoint import read_checkpoint
from glimt.tiny.checkpoint import make_tiny_checkpoint
from glimt.tiny.tokenizer import make_tokenizer
from tests.support.checkpoints import loaded, stored_tensors
from tests.support.passes import Passes, Work
from tests.training.toy import make_source
from training.attention import padded_attention
from training.export import main as export_main
from training.network import Batch, Network
from training.packing import pack
from training.sample import Sample, Span
from training.shape import PRESETS, make_shape
from training.train import main as train_main
from training.trainer import Recipe, Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    """A run of two steps and what it left."""
    out = tmp_path_factory.mktemp("run")
    arguments = [
        *("--preset", "small", "--source", "tests.training.toy:make_source"),
        *("--tokenizer", str(tokenizer_file), "--device", "cpu", "--workers", "0"),
        *("--steps", "2", "--eval-samples", "0", "--tokens", "256", "--patches", "256"),
        *("--micro-batches", "1", "--learning-rate", "1e-2", "--out", str(out)),
    ]
    assert train_main(arguments) == 0
    return out


def whole(sample: Sample) -> Sample:
    """Every token but the first as a target."""
    return Sample(sample.token_ids, sample.pictures, (Span(1, len(sample.token_ids), "all"),))


def test_server_and_transformers_give_the_logits_of_the_trained_network(
    folder: Path, tokenizer_file: Path
) -> None:
    source = make_source()
    sample = next(
        sample
        for sample in (whole(source.sample(seed, 0.0, False)) for seed in range(20))
        if len(sample.pictures) == 2
    )
    packed = pack([sample])
    batch = Batch(packed.counts, torch.from_numpy(packed.words), torch.from_numpy(packed.pixels))
    model, _ = loaded(folder / "model")
    network = Network(make_shape("small", make_tokenizer("4.5")).config, padded_attention)
    network.load_state_dict(model.state_dict())  # strict: what only training needs is not there
    with torch.no_grad():
        ours = network.eval()(batch)

    ids, patches = torch.from_numpy(sample.token_ids).long(), [p.patches for p in sample.pictures]
    tensors = [torch.from_numpy(part) for part in patches]
    x = model.embed(ids)
    image = read_checkpoint(folder / "model").config["image_token_id"]
    x[ids == image] = torch.cat(model.encode_images(tensors, [(4, 4), (4, 4)]))
    positions = batch.fields.positions_3T.long()
    servers = Passes(model, max_len=len(ids)).run([Work(0, x, positions)])[0]
    torch.testing.assert_close(ours, servers[:-1], atol=1e-4, rtol=0)

    theirs, info = Glm4vMoeForConditionalGeneration.from_pretrained(
        folder / "model", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    mean = np.array([0.48145466, 0.4578275, 0.40821073]).reshape(1, 3, 1, 1, 1)
    std = np.array([0.26862954, 0.26130258, 0.27577711]).reshape(1, 3, 1, 1, 1)
    pixels = [np.repeat((part / 255 - mean) / std, 2, axis=2).reshape(16, -1) for part in patches]
    with torch.no_grad():
        logits = theirs(
            input_ids=ids[None],
            mm_token_type_ids=(ids == image).int()[None],
            pixel_values=torch.tensor(np.concatenate(pixels), dtype=torch.float32),
            image_grid_thw=torch.tensor([[1, 4, 4], [1, 4, 4]]),
        ).logits[0]
    torch.testing.assert_close(ours, logits[:-1], atol=1e-4, rtol=0)


def test_the_files_are_those_of_the_published_checkpoints(folder: Path, tmp_path: Path) -> None:
    tiny = make_tiny_checkpoint(tmp_path)
    ours, theirs = ({p.name for p in f.iterdir()} for f in (folder / "model", tiny))
    assert ours == theirs
    for name in ("config.json", "generation_config.json", "preprocessor_config.json"):
        one, other = (json.loads((f / name).read_text()) for f in (folder / "model", tiny))
        assert one.keys() == other.keys()
        if name == "config.json":
            assert one["text_config"].keys() == other["text_config"].keys()
            assert one["vision_config"].keys() == other["vision_config"].keys()
    assert read_checkpoint(folder / "model").notes == ()


def test_weights_are_bf16_and_router_biases_float32(folder: Path) -> None:
    for name, tensor in stored_tensors(folder / "model").items():
        is_bias = name.endswith("e_score_correction_bias")
        assert tensor.dtype == (torch.float32 if is_bias else torch.bfloat16), name


def test_the_export_command_writes_the_same_folder_again(
    folder: Path, tmp_path: Path, tokenizer_file: Path
) -> None:
    arguments = [str(folder), str(tmp_path / "again"), "--tokenizer", str(tokenizer_file)]
    assert export_main(arguments) == 0
    for file in (folder / "model").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
    assert export_main([*arguments, "--last"]) == 0
    averaged, last = (stored_tensors(f) for f in (folder / "model", tmp_path / "again"))
    assert not torch.equal(averaged["lm_head.weight"], last["lm_head.weight"])


def test_the_full_preset_is_small_enough_to_ship() -> None:
    shape = make_shape("full", make_tokenizer("4.5"))
    trainer = Trainer(shape.config, CPU, Recipe())
    count = sum(parameter.numel() for parameter in trainer.network.parameters())
    assert 12e6 < count < 14e6
    assert set(PRESETS) == {"full", "small"}
