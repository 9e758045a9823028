"""The outlines of shapes, as points in a unit box: x to the right and y downwards, -1 to 1."""

import math
from functools import cache

Points = tuple[tuple[float, float], ...]


@cache
def outline(shape: str) -> Points:
    """Corners of the shape, in order. Rings and ovals are the circle; squares fill the box."""
    if shape in ("circle", "oval", "ring"):
        return _round(40)
    if shape in ("square", "rectangle"):
        return ((-1, -1), (1, -1), (1, 1), (-1, 1))
    if shape == "triangle":
        return ((0, -1), (1, 1), (-1, 1))
    if shape == "diamond":
        return ((0, -1), (1, 0), (0, 1), (-1, 0))
    if shape == "star":
        return _star(5, 0.42)
    if shape == "cross":
        return _cross(0.34)
    if shape == "heart":
        return _heart(40)
    raise ValueError(f"there is no shape {shape}")


def turned(points: Points, degrees: float) -> Points:
    """Turned clockwise about the centre, and scaled to fill the box again."""
    angle = math.radians(degrees)
    sin, cos = math.sin(angle), math.cos(angle)
    return _filling([(x * cos - y * sin, x * sin + y * cos) for x, y in points])


def _filling(points: list[tuple[float, float]]) -> Points:
    columns, rows = zip(*points, strict=True)
    left, right, top, bottom = min(columns), max(columns), min(rows), max(rows)
    return tuple(
        (2 * (x - left) / (right - left) - 1, 2 * (y - top) / (bottom - top) - 1) for x, y in points
    )


def _round(num_points: int) -> Points:
    steps = (2 * math.pi * i / num_points for i in range(num_points))
    return tuple((math.cos(step), math.sin(step)) for step in steps)


def _star(num_rays: int, inner: float) -> Points:
    points = []
    for i in range(2 * num_rays):
        radius = 1.0 if i % 2 == 0 else inner
        angle = math.pi * i / num_rays - math.pi / 2
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return _filling(points)


def _cross(arm: float) -> Points:
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    points = []
    for turn in range(4):
        for x, y in quarter:
            for _ in range(turn):
                x, y = -y, x
            points.append((x, y))
    return tuple(points)


def _heart(num_points: int) -> Points:
    """The curve of sixteen sine cubed and four cosines, widely known as "the heart curve"."""
    points = []
    for i in range(num_points):
        t = 2 * math.pi * i / num_points
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((16 * math.sin(t) ** 3, -y))
    return _filling(points)
