"""The held-out tasks that come with the built-in model: what it was never trained on."""

from pathlib import Path

from glimt.errors import StartupError

FILE = Path(__file__).parent / "heldout.zip"


def heldout_file() -> Path:
    """A zip in the form of docs/evaluation.md. Raises StartupError if it is not there."""
    if not FILE.is_file():
        raise StartupError(
            f"the built-in model's tasks are not in this installation, which lacks {FILE}. "
            "Install Glimt again, from its wheel or a complete checkout, or use --tasks"
        )
    return FILE
