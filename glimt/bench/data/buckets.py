"""Sizes of random images, as vLLM's client writes them on its command line."""

import ast

from glimt.errors import BadSettings

Size = tuple[int, int]  # height, width


def image_buckets(text: str) -> tuple[list[Size], list[float]]:
    """Sizes and their shares from `{(height, width, frames): share, …}`. Raises BadSettings."""
    option = f"--random-mm-bucket-config {text}"
    try:
        buckets = ast.literal_eval(text)
        pairs = [
            (tuple(int(side) for side in size), float(share)) for size, share in buckets.items()
        ]
    except (ValueError, SyntaxError, TypeError, AttributeError) as error:
        raise BadSettings(f"{option}: not a dict of (height, width, frames): {error}") from None
    used = [(size, share) for size, share in pairs if share > 0]
    if not used or any(share < 0 for _, share in pairs):
        raise BadSettings(f"{option}: shares must not be negative, and one must be above 0")
    if any(len(size) != 3 or min(size) < 1 for size, _ in used):
        raise BadSettings(f"{option}: sizes are (height, width, frames), each at least 1")
    if any(size[2] > 1 for size, _ in used):
        raise BadSettings(f"{option}: videos (frames above 1) are not made here; give them share 0")
    total = sum(share for _, share in used)
    return [(size[0], size[1]) for size, _ in used], [share / total for _, share in used]
