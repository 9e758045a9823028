"""Writes the folder: configuration, tokenizer, chat template and sharded safetensors."""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from glimt.tiny.config import (
    VOCAB_SIZE,
    Json,
    Style,
    Variant,
    generation_config,
    model_config,
    preprocessor_config,
    tokenizer_config,
)
from glimt.tiny.tokenizer import control_token_ids, make_tokenizer
from glimt.tiny.weights import quantize, random_tensors


def make_tiny_checkpoint(
    out: Path,
    *,
    variant: Variant = "moe",
    style: Style = "4.5",
    fp8: bool = False,
    shards: int = 2,
    seed: int = 0,
) -> Path:
    """Write a random checkpoint of about 2.5 M parameters to folder `out` and return `out`.

    Args:
        variant: moe (GLM-4.5V, GLM-4.6V) or dense (GLM-4.1V, GLM-4.6V-Flash).
        style: the generation whose spellings, tokens and processor classes the files follow.
        fp8: compressed-tensors, as the published FP8 repos.
        shards: number of weight files; 1 writes model.safetensors without an index.
        seed: of the weights; everything else is always the same.
    """
    if style == "4.1" and variant == "moe":
        raise ValueError("GLM-4.1V is a dense model: use variant='dense' with style='4.1'")
    if shards < 1:
        raise ValueError("shards must be at least 1")
    tokenizer = make_tokenizer(style)
    ids = control_token_ids(tokenizer, style)
    config = model_config(variant, style, ids, fp8=fp8)
    media = [i for token, i in ids.items() if "image" in token or "video" in token]
    padding = list(range(tokenizer.get_vocab_size(), VOCAB_SIZE))
    words = range(256, min(ids.values()))
    tensors = random_tensors(config, seed, words, unspoken=media + padding)

    template = "chat_template_4.1.jinja" if style == "4.1" else "chat_template.jinja"
    files = CheckpointFiles(
        config=config,
        generation=generation_config(style, ids),
        image_preprocessor=preprocessor_config("Image", style),
        video_preprocessor=preprocessor_config("Video", style),
        tokenizer_config=tokenizer_config(),
        tokenizer=tokenizer,
        chat_template=(Path(__file__).parent / template).read_text("utf-8"),
    )
    return write_checkpoint(out, files, quantize(tensors) if fp8 else tensors, shards)


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The content of every file of a checkpoint but the weights."""

    config: Json
    generation: Json
    image_preprocessor: Json
    video_preprocessor: Json
    tokenizer_config: Json
    tokenizer: Tokenizer
    chat_template: str


def write_checkpoint(
    out: Path, files: CheckpointFiles, tensors: dict[str, Tensor], shards: int
) -> Path:
    """Write a checkpoint in the hub's format to folder `out`, in place of one that is there.

    Args:
        tensors: hub name -> tensor in the dtype to be stored.
        shards: number of weight files; 1 writes model.safetensors without an index.
    """
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob("model*.safetensors*"):
        stale.unlink()
    _write_json(out / "config.json", files.config)
    _write_json(out / "generation_config.json", files.generation)
    _write_json(out / "preprocessor_config.json", files.image_preprocessor)
    _write_json(out / "video_preprocessor_config.json", files.video_preprocessor)
    _write_json(out / "tokenizer_config.json", files.tokenizer_config)
    files.tokenizer.save(str(out / "tokenizer.json"))
    (out / "chat_template.jinja").write_text(files.chat_template, "utf-8")
    _write_weights(out, tensors, files.config["text_config"]["num_hidden_layers"], shards)
    return out


def _write_weights(out: Path, tensors: dict[str, Tensor], num_layers: int, shards: int) -> None:
    if shards == 1:
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        return
    files: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        shard = _shard_of(name, num_layers, shards) + 1
        files.setdefault(f"model-{shard:05d}-of-{shards:05d}.safetensors", {})[name] = tensor
    for file, content in files.items():
        save_file(content, out / file, metadata={"format": "pt"})
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    index = {
        "metadata": {"total_size": total_bytes},
        "weight_map": {name: file for file in sorted(files) for name in sorted(files[file])},
    }
    _write_json(out / "model.safetensors.index.json", index)


def _shard_of(name: str, num_layers: int, shards: int) -> int:
    """The text layers in order; vision, embedding, final norm and head in the last file."""
    if not name.startswith("model.language_model.layers."):
        return shards - 1
    return int(name.split(".")[3]) * (shards - 1) // num_layers


def _write_json(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
