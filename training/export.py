"""`python -m training.export`: a training checkpoint becomes a folder in the hub's format.

Which parameter is made of which stored tensors is the server's own table, `glimt.models.names`,
read backwards; the files are written by the code that writes the tiny checkpoints.
"""

import argparse
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from glimt.errors import BadSettings
from glimt.models.config import ModelConfig
from glimt.models.config_json import read_config
from glimt.models.names import Source, parameters
from glimt.tiny.checkpoint import CheckpointFiles, write_checkpoint
from glimt.tiny.config import Json, generation_config, preprocessor_config, tokenizer_config
from glimt.tiny.tokenizer import control_token_ids
from training import checkpoints
from training.shape import IMAGE_LIMITS, STYLE, VIDEO_LIMITS, read_tokenizer
from training.weights import State

SHARDS = 2
ROOT = Path(__file__).resolve().parent
TOKENIZER = ROOT / "vocabulary" / "tokenizer.json"
TEMPLATE = ROOT.parent / "glimt" / "tiny" / "chat_template.jinja"


def export(
    out: Path, state: State, config_json: Json, tokenizer: Tokenizer, chat_template: str
) -> Path:
    """Write the checkpoint to folder `out` and return it.

    Args:
        state: parameters and router biases by name, as `Trainer.exported` gives them.
        config_json: of the network (`Shape.config_json`).
        tokenizer: the one that the network was trained with.
        chat_template: the content of chat_template.jinja.
    """
    ids = control_token_ids(tokenizer, STYLE)
    files = CheckpointFiles(
        config=config_json,
        generation=generation_config(STYLE, ids),
        image_preprocessor=preprocessor_config("Image", STYLE, IMAGE_LIMITS),
        video_preprocessor=preprocessor_config("Video", STYLE, VIDEO_LIMITS),
        tokenizer_config=tokenizer_config(config_json["text_config"]["max_position_embeddings"]),
        tokenizer=tokenizer,
        chat_template=chat_template,
    )
    return write_checkpoint(out, files, hub_tensors(read_config(config_json), state), SHARDS)


def hub_tensors(config: ModelConfig, state: State) -> dict[str, Tensor]:
    """Hub name -> tensor: BF16, the routers' biases float32."""
    tensors: dict[str, Tensor] = {}
    for parameter in parameters(config):
        whole = state[parameter.name].detach().cpu()
        for source in parameter.sources:
            part = whole if source.expert is None else whole[source.expert]
            part = _as_stored(part[source.start : source.start + source.num_rows], source)
            is_bias = source.name.endswith("e_score_correction_bias")
            dtype = torch.float32 if is_bias else torch.bfloat16
            tensors[source.name] = part.to(dtype).contiguous().clone()
    return tensors


def _as_stored(part: Tensor, source: Source) -> Tensor:
    """A parameter's rows in the layout of the stored tensor; see `Source.layout`."""
    if source.layout == "block":
        out, inputs, height, width = source.shape
        return part.view(out, height, width, inputs).permute(0, 3, 1, 2)
    return part.reshape(source.shape)


def export_checkpoint(
    checkpoint: Path, out: Path, tokenizer: Path, template: Path, *, average: bool = True
) -> Path:
    """Export the checkpoint.pt of a training run.

    Raises FileNotFoundError or ValueError if it cannot be read, BadSettings without a tokenizer.
    """
    state = checkpoints.load(checkpoint)
    biases = state["average_bias" if average else "bias"]
    weights = {
        **state["average" if average else "weights"],
        **dict(zip(state["bias_names"], biases, strict=True)),
    }
    return export(
        out,
        weights,
        state["config_json"],
        read_tokenizer(tokenizer),
        template.read_text("utf-8"),
    )


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt of a run, or its folder")
    parser.add_argument("out", type=Path, help="folder to be written")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER)
    parser.add_argument("--template", type=Path, default=TEMPLATE)
    parser.add_argument(
        "--last", action="store_true", help="the last weights instead of their average"
    )
    options = parser.parse_args(arguments)
    file = options.checkpoint
    file = file / checkpoints.FILE if file.is_dir() else file
    try:
        out = export_checkpoint(
            file, options.out, options.tokenizer, options.template, average=not options.last
        )
    except (BadSettings, FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    nbytes = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {nbytes / 1e6:.1f} MB in {len(list(out.iterdir()))} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
