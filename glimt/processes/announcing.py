"""What the supervisor says of a server, for people."""

import socket
from collections.abc import Sequence

from glimt.wire import EngineInfo


def address_of(listener: socket.socket, *, is_tls: bool) -> str:
    """Where a server listens, as clients write it."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if is_tls else 'http'}://{host}:{port}"


def waiting_for(copies: Sequence[int]) -> str:
    """Which replicas are still missing, while the others take requests."""
    names = ", ".join(map(str, copies))
    return f"waiting for replica{'s' if len(copies) > 1 else ''} {names}"


def resolved(info: EngineInfo) -> str:
    """What the wishes became in an engine."""
    return ", ".join(
        f"{name}={getattr(info, name)}"
        for name in (
            "device",
            "tensor_parallel_size",
            "dtype",
            "weights_format",
            "kv_cache_dtype",
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "num_pages",
            "page_size",
            "max_image_tokens",
        )
    )
