"""Files of the hub: from its cache, or downloaded; without it, at once and in one sentence.

`huggingface_hub` is used through its top level only, which loads its parts on use: with its errors
it would cost a third of a second at every start. That is why its exceptions are caught broadly.
"""

import os
import socket
import urllib.parse
from pathlib import Path

import huggingface_hub

from glimt.errors import BadSettings

_LOOK_S = 3.0


def cached_file(repository: str, name: str) -> Path | None:
    """A file of a model repository that was downloaded before."""
    found = huggingface_hub.try_to_load_from_cache(repository, name)
    return Path(found) if isinstance(found, str) else None


def download(repository: str, name: str, *, is_dataset: bool = False) -> Path:
    """A file of the hub, from the cache if it is there. Raises BadSettings."""
    reach()
    kind = "dataset" if is_dataset else None
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, repo_type=kind))
    except Exception as error:
        raise BadSettings(f"{name} of {repository} could not be downloaded: {error}") from None


def list_dataset(repository: str) -> list[str]:
    """All files of a dataset of the hub. Raises BadSettings."""
    reach()
    try:
        return list(huggingface_hub.list_repo_files(repository, repo_type="dataset"))
    except Exception as error:
        raise BadSettings(f"the hub does not list {repository}: {error}") from None


def cached_dataset(repository: str) -> Path | None:
    """The folder with what was downloaded of a dataset before."""
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, repo_type="dataset", local_files_only=True
            )
        )
    except Exception:
        return None


def reach() -> None:
    """Raises BadSettings at once if the hub cannot be reached (the library tries for a minute)."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise BadSettings("the hub may not be asked: HF_HUB_OFFLINE is set")
    if any(name.lower().endswith("_proxy") for name in os.environ):
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    parts = urllib.parse.urlsplit(endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), _LOOK_S).close()
    except OSError as error:
        raise BadSettings(
            f"the hub cannot be reached ({error.strerror or 'no answer'}; HF_ENDPOINT names it)"
        ) from None
