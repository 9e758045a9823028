"""Checkpoints with the published models' layer shapes, few layers, and made-up weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from glimt.tiny.checkpoint import make_tiny_checkpoint
from glimt.tiny.config import Variant
from glimt.tiny.weights import tensor_shapes

# As GLM-4.5V and GLM-4.6V-Flash; experts, vocabulary and layers are fewer, not smaller.
_TEXT: dict[str, dict[str, Any]] = {
    "moe": {
        "hidden_size": 4096,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 48,
        "num_hidden_layers": 2,
    },
    "dense": {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "intermediate_size": 13696,
        "num_hidden_layers": 4,
    },
}
_SHARD_BYTES = 600_000_000


def make_large_checkpoint(out: Path, variant: Variant) -> int:
    """Write it to `out`; its bytes (about 3 GB)."""
    make_tiny_checkpoint(out, variant=variant, shards=1)
    (out / "model.safetensors").unlink()
    file = out / "config.json"
    config = json.loads(file.read_text())
    config["text_config"] |= _TEXT[variant] | {"vocab_size": 16384}
    config["vision_config"] |= {
        "depth": 1,
        "hidden_size": 1536,
        "num_heads": 12,
        "out_hidden_size": 4096,
        "intermediate_size": config["text_config"]["intermediate_size"],
    }
    file.write_text(json.dumps(config))
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).bfloat16()
    parts: list[dict[str, torch.Tensor]] = [{}]
    for index, (name, shape) in enumerate(tensor_shapes(config)):
        size = 2 * torch.Size(shape).numel()
        if parts[-1] and size + sum(t.nbytes for t in parts[-1].values()) > _SHARD_BYTES:
            _save(out, parts)
            parts.append({})
        parts[-1][name] = _tensor(noise, shape, index)
    _save(out, parts)
    names = {name: f"part-{n:02}.safetensors" for n, part in enumerate(parts) for name in part}
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return sum(path.stat().st_size for path in out.glob("*.safetensors"))


def _tensor(noise: torch.Tensor, shape: tuple[int, ...], index: int) -> torch.Tensor:
    """Different rows in every tensor, at the cost of a copy."""
    count = torch.Size(shape).numel()
    shift = index * 7919 % noise.numel()
    repeats = -(-(count + shift) // noise.numel())
    return noise.repeat(repeats)[shift : shift + count].view(shape).clone()


def _save(out: Path, parts: list[dict[str, torch.Tensor]]) -> None:
    """Write the last part, and keep only its names."""
    save_file(parts[-1], out / f"part-{len(parts) - 1:02}.safetensors", metadata={"format": "pt"})
    parts[-1] = {name: torch.empty(0) for name in parts[-1]}
