"""Writes a checkpoint of a published model's sizes without weights, to be served with random ones.

    python benchmarks/make_dummy_checkpoint.py build/glm-4.5v            --model 106b (default), 9b
    glimt serve build/glm-4.5v --load-format dummy --quantization fp8
    glimt bench latency build/glm-4.5v --load-format dummy --quantization fp8
        --hf-overrides '{"text_config": {"num_hidden_layers": 4}}'

Configuration, image sizes and the number of tokens are the model's; the tokenizer's words are a
tiny one's, filled up with made-up ones, so that every token that is drawn has a text.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from model_sizes import MODELS

from glimt.tiny.checkpoint import make_tiny_checkpoint

# Pixels of all frames of an image, at least and at most; an image counts as two frames.
IMAGE_SIZE = {"shortest_edge": 12544, "longest_edge": 9633792}


def make_dummy_checkpoint(out: Path, model: str) -> Path:
    """Write it to the folder `out`; gives `out`."""
    sizes = MODELS[model]
    make_tiny_checkpoint(out, variant="dense" if model == "9b" else "moe")
    for weights in out.glob("model*safetensors*"):
        weights.unlink()
    config = _read(out / "config.json")
    for part, values in sizes.items():
        config[part] = config[part] | values
    _write(out / "config.json", config)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        _write(out / name, _read(out / name) | {"size": IMAGE_SIZE})
    tokenizer = _read(out / "tokenizer.json")
    words = tokenizer["model"]["vocab"]
    taken = {*words.values(), *(token["id"] for token in tokenizer["added_tokens"])}
    for number in range(config["text_config"]["vocab_size"]):
        if number not in taken:
            words[f"\u0120w{number}"] = number  # G with a dot is how such files write a space
    _write(out / "tokenizer.json", tokenizer)
    return out


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=[*MODELS], default="106b")
    options = parser.parse_args()
    print(make_dummy_checkpoint(options.out, options.model))


if __name__ == "__main__":
    main()
