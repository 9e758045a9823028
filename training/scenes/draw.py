"""Scenes as pixels: drawn larger than wanted, then averaged down, so that edges are smooth."""

import io
import math
import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.scenes import fonts
from training.scenes.scene import PLAIN, Ground, Scene, Shape, Text

_RING_WIDTH = 0.2  # of the shorter side


def draw(scene: Scene, seed: int = 0) -> Image.Image:
    """The picture, RGB. `seed` is that of the grain."""
    scale = 2 if scene.width * scene.height > 250 * 250 else 3
    image = _ground(scene.ground, scene.width, scene.height, scale)
    canvas = ImageDraw.Draw(image)
    for item in scene.items:
        if isinstance(item, Shape):
            _draw_shape(canvas, item, scale)
        else:
            _draw_text(image, item, scale)
    image = image.reduce(scale)
    return _grainy(image, scene.ground.noise, seed) if scene.ground.noise else image


def as_photographed(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture after a JPEG file, as users send it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=rng.randint(60, 95))
    return Image.open(buffer).convert("RGB")


def _ground(ground: Ground, width: int, height: int, scale: int) -> Image.Image:
    if ground.far == ground.rgb:
        return Image.new("RGB", (width * scale, height * scale), ground.rgb)
    ramp = np.linspace(0, 1, height * scale)[:, None]
    rows = (1 - ramp) * np.array(ground.rgb) + ramp * np.array(ground.far)
    pixels = np.broadcast_to(rows[:, None], (height * scale, width * scale, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def _draw_shape(canvas: ImageDraw.ImageDraw, item: Shape, scale: int) -> None:
    left, top, right, bottom = (side * scale for side in item.box)
    if item.shape == "ring":
        width = round(_RING_WIDTH * min(right - left, bottom - top))
        canvas.ellipse((left, top, right, bottom), outline=item.rgb, width=max(1, width))
        return
    x, y, half_x, half_y = (
        (left + right) / 2,
        (top + bottom) / 2,
        (right - left) / 2,
        (bottom - top) / 2,
    )
    canvas.polygon([(x + px * half_x, y + py * half_y) for px, py in item.points], fill=item.rgb)


def _draw_text(image: Image.Image, item: Text, scale: int) -> None:
    font = fonts.load(item.face, item.em * scale)
    if item.look == PLAIN:
        left, top, _, _ = font.getbbox(item.text)
        place = (item.box[0] * scale - left, item.box[1] * scale - top)
        ImageDraw.Draw(image).text(place, item.text, font=font, fill=item.rgb)
        return
    corner = round(item.box[0] * scale), round(item.box[1] * scale)
    image.paste(item.rgb, corner, _mask(item, font, scale))


def _mask(item: Text, font: fonts.Face, scale: int) -> Image.Image:
    """Where the ink is, 0 to 255: the face's characters, bolder, wider and leaning as they look."""
    look = item.look
    stroke = round(look.weight * item.em * scale)
    left, top, right, bottom = font.getbbox(item.text, stroke_width=stroke)
    upright = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(upright).text((-left, -top), item.text, 255, font, stroke_width=stroke)
    width, height = upright.size
    shift = max(0.0, look.slant) * height  # of the lowest row to the left, of the highest 0
    size = round(width * look.stretch + abs(look.slant) * height), height
    # A pixel (x, y) comes from ((x - shift + slant · y) / stretch, y), or shifted if it leans left.
    across = (1 / look.stretch, look.slant / look.stretch, -shift / look.stretch)
    matrix = (*across, 0.0, 1.0, 0.0)
    return upright.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _grainy(image: Image.Image, deviation: float, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, deviation, (image.height, image.width, 1))
    pixels: NDArray[np.float64] = np.asarray(image) + noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
