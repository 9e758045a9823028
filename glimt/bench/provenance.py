"""Where a result comes from: the machine, the versions, the command, the workload."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from glimt import __version__


def provenance() -> dict[str, Any]:
    """What can be known of this client and machine."""
    return {
        "client": f"glimt {__version__}",
        "commit": _commit(),
        "python": platform.python_version(),
        "uvloop": uvloop.__version__,  # type: ignore[attr-defined]
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "argv": without_secrets(sys.argv[1:]),
    }


def without_secrets(argv: Sequence[str]) -> list[str]:
    """A command line that can be shown: of headers, which may hold keys, only the names."""
    shown, is_header = [], False
    for argument in argv:
        option, has_value, value = argument.partition("=")
        if argument.startswith("--"):
            is_header = option == "--header"
            if is_header and has_value:
                argument = f"{option}={without_value(value)}"
        elif is_header:
            argument = without_value(argument)
        shown.append(argument)
    return shown


def without_value(header: str) -> str:
    """KEY=VALUE of a header, its value hidden."""
    return f"{header.partition('=')[0]}=***"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the source tree this runs from; None if installed from elsewhere."""
    try:
        told = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=2,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip()
