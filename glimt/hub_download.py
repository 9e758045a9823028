"""Downloads of checkpoints from the hub.

They go through huggingface_hub, so HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT mean
what they mean everywhere. Only data is fetched: JSON, Jinja and safetensors; never code, never
pickled weights.
"""

from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors

from glimt.errors import BadCheckpoint

_SETTINGS_FILES = ["*.json", "*.jinja"]
_WEIGHT_FILES = ["*.safetensors"]
_NEVER = ["*/*", "*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle"]


def download(
    model: str,
    *,
    revision: str | None,
    download_dir: str | Path | None,
    weights: bool,
    only: str | None,
) -> Path:
    """The folder of the repository `model` in the cache, fetched if it is not there; the arguments
    are those of `hub.locate`. Raises BadCheckpoint if it cannot be had.
    """
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model,
                revision=revision,
                cache_dir=download_dir,
                allow_patterns=[only] if only else _patterns(weights),
                ignore_patterns=_NEVER,
            )
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise BadCheckpoint(_explain(error, model, revision or "main")) from error


def _patterns(weights: bool) -> list[str]:
    return _SETTINGS_FILES + (_WEIGHT_FILES if weights else [])


def _explain(error: Exception, model: str, revision: str) -> str:
    where = f"there is no folder {model}, and on the hub"
    # The order matters: a gated repository is also "not found".
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{model} is gated: accept its terms on the hub's page, then set HF_TOKEN to a token "
            "of that account"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{where} no repository of that name (if it is private, set HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{where} {model} has no revision {revision!r}"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            return (
                f"{model} (revision {revision}) is not in the local cache, and HF_HUB_OFFLINE is "
                "set: download it once without, or give a folder"
            )
        return (
            f"{model} (revision {revision}) is not in the local cache, and the hub at "
            f"{constants.ENDPOINT} cannot be reached"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub at {constants.ENDPOINT} refused to give {model}: {error}"
    return f"{model} could not be downloaded: {error}"
