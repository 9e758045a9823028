"""What is said of an option that `glimt bench` does not have: what to use in its place."""

import difflib
from typing import Any

from cyclopts import CycloptsError, CycloptsPanel, UnknownOptionError

_AUDIO = "Audio is not measured here: the models served take text, images and videos"
_POOLING = "Embeddings and reranking are not measured here"
_ROWS = "write its prompts to a file for --dataset-name custom"
# By the start of the option: those of vLLM's client, of this release or an earlier one.
_INSTEAD = {
    "--asr-": _AUDIO,
    "--custom-audio": _AUDIO,
    "--no-reranker": _POOLING,
    "--spec-bench-": f"That dataset is not read: {_ROWS}",
    "--speed-bench-": f"That dataset is not read: {_ROWS}",
    "--blazedit-": f"That dataset is not read: {_ROWS}",
    "--bfcl-": f"That dataset is not read: {_ROWS}, and tools to --extra-body",
    "--sonnet-": "vLLM's client dropped that dataset: use --dataset-name prefix_repetition",
    "--self-test": "The client is measured by `glimt bench ceiling`",
}


def explain(error: CycloptsError) -> Any:
    """For cyclopts: the error as it is to be printed."""
    if not isinstance(error, UnknownOptionError):
        return CycloptsPanel(error)
    option = (error.token.keyword or error.token.value or "").partition("=")[0]
    if (reason := instead(option)) is not None:
        return CycloptsPanel(f"Unknown option: {option}. {reason}.")
    known = [name for argument in error.argument_collection for name in argument.names]
    nearest = difflib.get_close_matches(option, known, 1, 0.0)
    hint = f" The nearest is {nearest[0]}." if nearest else ""
    return CycloptsPanel(f"Unknown option: {option}.{hint}")


def instead(option: str) -> str | None:
    """What to do in place of an option of another client; None if it is not known."""
    return next((says for start, says in _INSTEAD.items() if option.startswith(start)), None)
