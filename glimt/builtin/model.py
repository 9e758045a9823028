"""Where the built-in model lies, and what it is called."""

from pathlib import Path

from glimt.errors import StartupError

NAME = "builtin"  # to be written in place of a folder; a folder of that name is ./builtin
SERVED_NAME = "glimt-builtin"
FOLDER = Path(__file__).parent / "model"

_NEEDED = ("config.json", "tokenizer.json", "chat_template.jinja")


def model_folder() -> Path:
    """The built-in model's checkpoint, in the hub's format.

    Raises StartupError if this installation lacks files of it.
    """
    missing = [name for name in _NEEDED if not (FOLDER / name).is_file()]
    if not any(FOLDER.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise StartupError(
            f"the built-in model is not in this installation: {FOLDER} lacks {', '.join(missing)}. "
            "Install Glimt again, from its wheel or a complete checkout, or name another checkpoint"
        )
    return FOLDER
