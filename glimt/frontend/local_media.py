"""Reads media files below one folder, whatever links and races the folder holds.

Symbolic links are followed, and then it is the opened file that is judged, not its name: the
descriptor's own path must lie below the root. Hard links cannot be told from files. Every refusal
reads the same, so that nobody learns which files exist.
"""

import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote_to_bytes

from glimt.errors import BadMedia, MediaBlocked

_URL = re.compile(r"file://(?P<path>/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*)")
_CHUNK_BYTES = 1 << 20


def read_local_media(root: str, url: str, max_bytes: int, param: str | None = None) -> bytes:
    """The bytes of the regular file that `file:///…` names. Blocks: call it in a thread.

    Raises MediaBlocked for everything that is not a readable, non-empty regular file below
    `root`, BadMedia if that file is larger than `max_bytes`.
    """
    path = _path(url)
    file = _open_below(os.path.realpath(root), path) if path is not None else None
    if file is None:
        raise MediaBlocked("media file not available", param=param)
    try:
        data = _read_up_to(file, max_bytes + 1)
    except OSError:
        raise MediaBlocked("media file not available", param=param) from None
    finally:
        os.close(file)
    if len(data) > max_bytes:
        raise BadMedia(f"the file is larger than {max_bytes:,} bytes", param=param)
    return data


def _path(url: str) -> str | None:
    """The absolute path, percent signs decoded once; None if it is not plainly one."""
    match = _URL.fullmatch(url)
    if match is None:
        return None
    try:
        path = unquote_to_bytes(match["path"]).decode("utf-8")
    except UnicodeDecodeError:
        return None
    is_plain = "\0" not in path and not {"", ".", ".."} & set(path[1:].split("/"))
    return path if is_plain else None


def _open_below(root: str, path: str) -> int | None:
    """A descriptor of a non-empty regular file below `root`; None = there is none."""
    try:
        # O_PATH touches nothing: no device reacts, no FIFO waits.
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        own_name = f"/proc/self/fd/{found}"
        status = os.fstat(found)
        is_file = stat.S_ISREG(status.st_mode) and status.st_size > 0
        if not is_file or not _is_below(root, os.readlink(own_name)):
            return None
        # Through the descriptor: the same file, whatever the name means by now.
        return os.open(own_name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return None
    finally:
        os.close(found)


def _is_below(root: str, path: str) -> bool:
    return Path(path).is_relative_to(root) and path != root


def _read_up_to(file: int, limit: int) -> bytes:
    data = bytearray()
    while len(data) < limit:
        chunk = os.read(file, min(_CHUNK_BYTES, limit - len(data)))
        if not chunk:
            break
        data += chunk
    return bytes(data)
