"""From what the user typed to a folder: a local checkpoint, the built-in one, or a download."""

import re
from pathlib import Path

from glimt.builtin import model as builtin
from glimt.errors import BadCheckpoint

_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def locate(
    model: str,
    *,
    revision: str | None = None,
    download_dir: str | Path | None = None,
    weights: bool = True,
    only: str | None = None,
) -> Path:
    """The folder that holds the checkpoint `model`, downloaded first if it is a hub repository.

    Args:
        model: a folder, used as it is, or "owner/name", or "builtin" for the model that comes
            with Glimt.
        revision: branch, tag or commit of the repository.
        download_dir: cache folder for downloads, in place of the hub's own (HF_HOME).
        weights: False leaves the weight files out (`--load-format dummy`).
        only: the one file of the repository that is wanted.

    Raises BadCheckpoint if there is no such folder or repository, or it cannot be had, and
    StartupError if the built-in model is not installed.
    """
    if model == builtin.NAME:
        return builtin.model_folder()
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        return folder
    if folder.is_file():
        raise BadCheckpoint(f"{model} is a file; give the folder of the checkpoint")
    if model == builtin.SERVED_NAME:
        raise BadCheckpoint(f"there is no folder {model!r}; the built-in model is {builtin.NAME!r}")
    if not _REPOSITORY.fullmatch(model) or model.startswith("."):
        raise BadCheckpoint(
            f"there is no folder {model!r} (and a repository of the hub is written owner/name)"
        )
    from glimt.hub_download import download

    return download(model, revision=revision, download_dir=download_dir, weights=weights, only=only)
