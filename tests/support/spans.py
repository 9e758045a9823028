"""Spans of images of which only the place in the prompt and the content matter."""

from glimt.wire import ImageSpan, PixelRef


def image_span(content: int, start: int, num_tokens: int) -> ImageSpan:
    """An image of `content`, 0 to 255, at prompt positions [start, start + num_tokens)."""
    return ImageSpan(
        content_hash=bytes([content]) * 32,
        start=start,
        num_tokens=num_tokens,
        grid_h=2,
        grid_w=2 * num_tokens,
        num_frames=1,
        pixels=PixelRef(0, 0, 0),
    )
