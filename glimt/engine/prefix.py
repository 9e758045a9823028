"""What a page of KV is a function of, as a hash chain.

The KV of a token depends on everything before it, so a page's hash covers its parent's hash and
its own content: token ids at fixed width, the parts of images that lie in it, and positions that
are not simply 0, 1, 2 … (M-RoPE). The root covers the tenant's salt. SHA-256 throughout: two
contents with one hash would show one user another's prompt.
"""

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from glimt.engine.plan import IntArray
from glimt.wire import ImageSpan

_HEADER = struct.Struct("<qqq")  # tokens, images, bytes of positions: frames what follows
_IMAGE = struct.Struct("<32sqq")  # content hash, offset of the page in the span, span length


def root_hash(cache_salt: bytes) -> bytes:
    """Parent of first pages: 32 bytes that only requests with the same salt share."""
    return hashlib.sha256(b"glimt prefix cache root" + cache_salt).digest()


def page_hash(
    parent: bytes,
    token_ids: IntArray,
    start: int,
    images: Sequence[ImageSpan] = (),
    positions: IntArray | None = None,
) -> bytes:
    """Hash (32 bytes) of the page that holds `token_ids` [N] at sequence indices from `start`.

    `images` are the spans of the whole prompt, ascending; `positions` [3, N] those of the page,
    None if they are the sequence indices.
    """
    end = start + len(token_ids)
    inside = []
    for span in images[bisect_right(images, start, key=_end_of) :]:
        if span.start >= end:
            break
        inside.append(_IMAGE.pack(span.content_hash, start - span.start, span.num_tokens))
    moved = b"" if positions is None or _is_plain(positions, start) else positions.tobytes()
    digest = hashlib.sha256(parent)
    digest.update(_HEADER.pack(len(token_ids), len(inside), len(moved)))
    digest.update(np.ascontiguousarray(token_ids, dtype="<i4").tobytes())
    digest.update(b"".join(inside))
    digest.update(moved)
    return digest.digest()


def _end_of(span: ImageSpan) -> int:
    return span.start + span.num_tokens


def _is_plain(positions: IntArray, start: int) -> bool:
    indices = np.arange(start, start + positions.shape[1], dtype=np.int32)
    return bool((positions == indices).all())
