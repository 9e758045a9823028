"""What scenes are made of: colours, shapes, sizes, and the pairs that training never sees."""

import random
import zlib

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (216, 38, 40),
    "orange": (242, 140, 28),
    "yellow": (242, 218, 48),
    "green": (46, 158, 70),
    "blue": (44, 88, 216),
    "purple": (128, 56, 170),
    "pink": (246, 146, 188),
    "brown": (122, 76, 42),
    "black": (18, 18, 20),
    "white": (250, 250, 248),
    "grey": (134, 135, 138),
}
SHAPES = (
    "circle",
    "square",
    "triangle",
    "rectangle",
    "oval",
    "star",
    "diamond",
    "cross",
    "ring",
    "heart",
)
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
# Largest side of a shape over the shorter side of the picture; the gaps leave no doubt.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.14, 0.19),
    "medium": (0.27, 0.34),
    "large": (0.46, 0.60),
}
MIN_PIXELS = 12  # smallest side of anything that is asked about
_MIN_CONTRAST = 110.0
_HELD_OUT_SHARE = 8  # one pair in eight


def is_held_out(colour: str, shape: str) -> bool:
    """Whether this pair is kept for the evaluation: about one in eight, the same ones for ever."""
    return zlib.crc32(f"{colour} {shape}".encode()) % _HELD_OUT_SHARE == 0


def shade(colour: str, rng: random.Random) -> Rgb:
    """One of the shades that go by the name `colour`."""
    light = rng.uniform(0.92, 1.06)
    return tuple(  # type: ignore[return-value]
        max(0, min(255, round(value * light + rng.uniform(-9, 9)))) for value in COLOURS[colour]
    )


def contrast(one: Rgb, other: Rgb) -> float:
    """Distance of two colours as eyes weigh it: the low-cost approximation by the mean red
    ("redmean", T. Riemersma), 0 to about 765."""
    mean_red = (one[0] + other[0]) / 2
    red, green, blue = (a - b for a, b in zip(one, other, strict=True))
    weighted = (2 + mean_red / 256) * red**2 + 4 * green**2 + (2 + (255 - mean_red) / 256) * blue**2
    return float(weighted**0.5)


def stands_out(colour: Rgb, ground: Rgb) -> bool:
    """Whether a shape of this colour can be seen on this ground."""
    return contrast(colour, ground) >= _MIN_CONTRAST
