"""Draws a scene with Pillow: the same pixels for the same scene, size and seed.

Things are lists of filled primitives in a unit square (x to the right, y down,
both -1 to 1); a picture is drawn at twice its size and box-reduced, so edges are
smooth and no platform's resampling or fonts matter.

    python draw.py OUT.png [SEED]      draws one random scene and prints its caption
"""

from __future__ import annotations

import math
import sys
from random import Random

from PIL import Image, ImageDraw
from scenes import COLOURS, Scene, alt_text, random_scene

Colour = tuple[int, int, int]
Point = tuple[float, float]
Primitive = tuple[str, tuple[float, ...], str]  # kind, numbers, shade
OVERSAMPLE = 2


def _regular(points: int, inner: float = 1.0, turn: float = -90.0) -> tuple[float, ...]:
    """A regular polygon, or a star where `inner` is below 1, as x0, y0, x1, y1 …"""
    steps = points if inner == 1.0 else 2 * points
    numbers: list[float] = []
    for step in range(steps):
        angle = math.radians(turn + 360.0 * step / steps)
        radius = inner if inner != 1.0 and step % 2 else 1.0
        numbers += [round(radius * math.cos(angle), 4), round(radius * math.sin(angle), 4)]
    return tuple(numbers)


SHAPE_PARTS: dict[str, tuple[Primitive, ...]] = {
    "circle": (("ellipse", (-1, -1, 1, 1), "main"),),
    "square": (("poly", (-0.9, -0.9, 0.9, -0.9, 0.9, 0.9, -0.9, 0.9), "main"),),
    "triangle": (("poly", (0, -1, 1, 0.8, -1, 0.8), "main"),),
    "star": (("poly", _regular(5, 0.42), "main"),),
    "heart": (
        ("ellipse", (-1, -0.9, 0.05, 0.2), "main"),
        ("ellipse", (-0.05, -0.9, 1, 0.2), "main"),
        ("poly", (-0.93, -0.1, 0.93, -0.1, 0, 1), "main"),
        ("poly", (-0.5, -0.4, 0.5, -0.4, 0.5, 0.1, -0.5, 0.1), "main"),
    ),
    "ring": (("ring", (-1, -1, 1, 1, 0.36), "main"),),
    "diamond": (("poly", (0, -1, 0.68, 0, 0, 1, -0.68, 0), "main"),),
    "cross": (
        ("poly", (-0.3, -1, 0.3, -1, 0.3, 1, -0.3, 1), "main"),
        ("poly", (-1, -0.3, 1, -0.3, 1, 0.3, -1, 0.3), "main"),
    ),
}
OBJECT_PARTS: dict[str, tuple[Primitive, ...]] = {
    "house": (
        ("poly", (-0.75, -0.15, 0.75, -0.15, 0.75, 1, -0.75, 1), "main"),
        ("poly", (-1, -0.15, 0, -1, 1, -0.15), "dark"),
        ("poly", (-0.2, 0.35, 0.2, 0.35, 0.2, 1, -0.2, 1), "wood"),
        ("poly", (-0.6, 0.1, -0.32, 0.1, -0.32, 0.4, -0.6, 0.4), "glass"),
        ("poly", (0.32, 0.1, 0.6, 0.1, 0.6, 0.4, 0.32, 0.4), "glass"),
    ),
    "tree": (
        ("poly", (-0.14, 0.2, 0.14, 0.2, 0.14, 1, -0.14, 1), "wood"),
        ("ellipse", (-0.75, -0.6, 0.15, 0.4), "main"),
        ("ellipse", (-0.15, -0.6, 0.75, 0.4), "main"),
        ("ellipse", (-0.5, -1, 0.5, 0.1), "main"),
    ),
    "boat": (
        ("poly", (-1, 0.35, 1, 0.35, 0.6, 0.9, -0.6, 0.9), "main"),
        ("poly", (-0.05, -1, 0.05, -1, 0.05, 0.35, -0.05, 0.35), "wood"),
        ("poly", (0.1, -0.95, 0.85, 0.2, 0.1, 0.2), "light"),
        ("poly", (-0.1, -0.7, -0.1, 0.2, -0.65, 0.2), "light"),
    ),
    "fish": (
        ("poly", (0.4, 0, 1, -0.55, 1, 0.55), "dark"),
        ("ellipse", (-1, -0.55, 0.65, 0.55), "main"),
        ("ellipse", (-0.72, -0.25, -0.5, -0.03), "eye"),
        ("poly", (-0.3, -0.5, 0.25, -0.5, 0.1, -0.85), "dark"),
    ),
    "flower": (
        ("poly", (-0.06, 0, 0.06, 0, 0.06, 1, -0.06, 1), "leaf"),
        ("ellipse", (0.05, 0.45, 0.6, 0.75), "leaf"),
        ("ellipse", (-0.3, -1, 0.3, -0.35), "main"),
        ("ellipse", (-0.3, -0.3, 0.3, 0.35), "main"),
        ("ellipse", (-0.7, -0.65, -0.05, -0.02), "main"),
        ("ellipse", (0.05, -0.65, 0.7, -0.02), "main"),
        ("ellipse", (-0.22, -0.55, 0.22, -0.1), "centre"),
    ),
    "car": (
        ("poly", (-0.55, -0.15, -0.35, -0.6, 0.35, -0.6, 0.6, -0.15), "dark"),
        ("poly", (-0.42, -0.17, -0.28, -0.48, 0.28, -0.48, 0.44, -0.17), "glass"),
        ("poly", (-1, -0.15, 0.95, -0.15, 1, 0.4, -1, 0.4), "main"),
        ("ellipse", (-0.75, 0.15, -0.25, 0.65), "eye"),
        ("ellipse", (0.25, 0.15, 0.75, 0.65), "eye"),
    ),
    "balloon": (
        ("poly", (-0.03, 0.45, 0.03, 0.45, 0.06, 1, 0, 1), "eye"),
        ("ellipse", (-0.65, -1, 0.65, 0.45), "main"),
        ("poly", (-0.12, 0.58, 0.12, 0.58, 0, 0.4), "dark"),
        ("ellipse", (-0.42, -0.78, -0.12, -0.3), "light"),
    ),
    "cup": (
        ("ring", (0.25, -0.45, 1, 0.45, 0.14), "main"),
        ("poly", (-0.85, -0.7, 0.6, -0.7, 0.4, 0.8, -0.65, 0.8), "main"),
        ("ellipse", (-0.85, -0.88, 0.6, -0.52), "dark"),
    ),
    "kite": (
        ("poly", (0, -1, 0.6, -0.3, 0, 0.5, -0.6, -0.3), "main"),
        ("poly", (0, -1, 0.6, -0.3, 0, -0.3), "light"),
        ("poly", (0, 0.5, -0.6, -0.3, 0, -0.3), "dark"),
        ("poly", (-0.02, 0.5, 0.05, 0.5, 0.35, 0.8, 0.2, 1, 0.15, 1, 0.27, 0.8), "eye"),
    ),
    "mushroom": (
        ("poly", (-0.25, 0, 0.25, 0, 0.32, 1, -0.32, 1), "pale"),
        ("half", (-1, -0.9, 1, 0.9), "main"),
        ("ellipse", (-0.55, -0.5, -0.25, -0.2), "pale"),
        ("ellipse", (-0.05, -0.75, 0.25, -0.45), "pale"),
        ("ellipse", (0.4, -0.4, 0.65, -0.15), "pale"),
    ),
    "umbrella": (
        ("poly", (-0.05, -0.1, 0.05, -0.1, 0.05, 0.9, -0.05, 0.9), "wood"),
        ("poly", (-0.3, 0.8, 0.05, 0.8, 0.05, 0.95, -0.3, 0.95), "wood"),
        ("half", (-1, -1, 1, 0.8), "main"),
        ("half", (-0.4, -1, 0.4, 0.8), "light"),
    ),
    "butterfly": (
        ("ellipse", (-1, -0.9, -0.05, 0.15), "main"),
        ("ellipse", (0.05, -0.9, 1, 0.15), "main"),
        ("ellipse", (-0.8, 0, -0.05, 0.85), "dark"),
        ("ellipse", (0.05, 0, 0.8, 0.85), "dark"),
        ("ellipse", (-0.12, -0.7, 0.12, 0.75), "eye"),
    ),
}
PARTS = SHAPE_PARTS | OBJECT_PARTS
FIXED = {
    "wood": (110, 72, 40),
    "glass": (205, 230, 245),
    "eye": (25, 25, 30),
    "leaf": (70, 140, 60),
    "centre": (245, 205, 60),
    "pale": (250, 240, 220),
}
LANDSCAPES = {  # sky, ground, detail
    "meadow": ((170, 215, 245), (110, 185, 85), (85, 155, 65)),
    "sea": ((190, 225, 245), (45, 120, 185), (95, 165, 215)),
    "night": ((22, 26, 66), (35, 40, 50), (250, 240, 190)),
    "snow": ((205, 220, 235), (242, 246, 250), (215, 226, 240)),
    "desert": ((240, 220, 180), (226, 192, 120), (205, 165, 95)),
}


def _mix(colour: Colour, other: Colour, share: float) -> Colour:
    """`colour` with `share` of `other` in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _shade(name: str, main: Colour) -> Colour:
    if name in FIXED:
        return FIXED[name]
    if name == "dark":
        return _mix(main, (0, 0, 0), 0.25)
    return _mix(main, (255, 255, 255), 0.45) if name == "light" else main


def draw_thing(canvas: ImageDraw.ImageDraw, thing: str, main: Colour, centre: Point, radius: float) -> None:
    """Draw one thing into the square of half-side `radius` about `centre`."""
    for kind, unit, shade in PARTS[thing]:
        offsets = [centre[i % 2] + radius * number for i, number in enumerate(unit[: 4 if kind != "poly" else None])]
        fill = _shade(shade, main)
        if kind == "poly":
            canvas.polygon(list(zip(offsets[::2], offsets[1::2], strict=True)), fill=fill)
        elif kind == "ellipse":
            canvas.ellipse(offsets, fill=fill)
        elif kind == "half":
            canvas.pieslice(offsets, 180, 360, fill=fill)
        else:
            canvas.ellipse(offsets, outline=fill, width=max(1, round(radius * unit[4])))


def _draw_field(canvas: ImageDraw.ImageDraw, size: tuple[int, int], pattern: str, base: Colour, rng: Random) -> None:
    width, height = size
    other = _mix(base, (255, 255, 255) if sum(base) < 600 else (60, 60, 60), 0.35)
    canvas.rectangle((0, 0, width, height), fill=base)
    step = round(min(size) * rng.uniform(0.1, 0.16))
    columns, rows = width // step + 2, height // step + 2
    if pattern == "striped":
        upright = rng.random() < 0.5
        for i in range(0, columns if upright else rows, 2):
            box = (i * step, 0, (i + 1) * step, height) if upright else (0, i * step, width, (i + 1) * step)
            canvas.rectangle(box, fill=other)
    elif pattern in ("dotted", "checkered"):
        for row in range(rows):
            for column in range(row % 2, columns, 2):
                box = (column * step, row * step, (column + 1) * step, (row + 1) * step)
                if pattern == "checkered":
                    canvas.rectangle(box, fill=other)
                else:
                    inset = step * 0.2
                    canvas.ellipse((box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset), fill=other)


def _draw_landscape(canvas: ImageDraw.ImageDraw, size: tuple[int, int], scene: Scene, rng: Random) -> None:
    width, height = size
    sky, ground, detail = LANDSCAPES[scene.ground]
    unit = min(size) / 100
    horizon = height * rng.uniform(0.42, 0.55)
    canvas.rectangle((0, 0, width, height), fill=sky)
    canvas.rectangle((0, horizon, width, height), fill=ground)
    if scene.ground in ("desert", "snow", "meadow"):
        x = width * rng.uniform(0.2, 0.8)
        canvas.ellipse((x - width * 0.5, horizon - unit * 7, x + width * 0.5, horizon + unit * 20), fill=ground)
    for _ in range(14):
        x, y = rng.uniform(0, width), rng.uniform(horizon + 4 * unit, height)
        canvas.ellipse((x, y, x + unit * rng.uniform(6, 14), y + 1.6 * unit), fill=detail)
    if scene.ground == "night":
        for _ in range(24):
            x, y = rng.uniform(0, width), rng.uniform(0, horizon)
            canvas.ellipse((x, y, x + 1.4 * unit, y + 1.4 * unit), fill=detail)
        x = width * rng.uniform(0.1, 0.8)
        canvas.ellipse((x, 6 * unit, x + 16 * unit, 22 * unit), fill=detail)
        canvas.ellipse((x + 5 * unit, 4 * unit, x + 20 * unit, 19 * unit), fill=sky)
    if scene.sky == "sun":
        x = width * rng.uniform(0.08, 0.8)
        canvas.ellipse((x, 5 * unit, x + 18 * unit, 23 * unit), fill=(255, 225, 90))
    for _ in range(3 if scene.sky == "clouds" else 0):
        x, y = rng.uniform(0, width * 0.8), rng.uniform(4 * unit, horizon * 0.35)
        canvas.ellipse((x, y + 2 * unit, x + 24 * unit, y + 11 * unit), fill=(252, 252, 252))
        canvas.ellipse((x + 6 * unit, y - 2 * unit, x + 18 * unit, y + 9 * unit), fill=(252, 252, 252))


def _centres(scene: Scene, size: tuple[int, int], radius: float, rng: Random) -> list[Point]:
    """Where the things stand: one at its place, several side by side or in two rows."""
    width, height = size
    if scene.count == 1:
        near_x, near_y = radius * 1.15, radius * 1.15
        x = {"left": near_x, "right": width - near_x}.get(scene.place, width / 2 + rng.uniform(-0.04, 0.04) * width)
        y = {"top": near_y, "bottom": height - near_y}.get(scene.place, height / 2 + rng.uniform(-0.04, 0.04) * height)
        return [(x, y)]
    upper = scene.count if scene.count <= 3 else (scene.count + 1) // 2
    rows = [upper] if scene.count <= 3 else [upper, scene.count - upper]
    centres: list[Point] = []
    for row, members in enumerate(rows):
        for i in range(members):
            x = width * (i + 0.5) / members + rng.uniform(-0.02, 0.02) * width
            y = height * (row + 0.5) / len(rows) + rng.uniform(-0.05, 0.05) * height
            centres.append((x, y))
    return centres


def draw_scene(scene: Scene, size: tuple[int, int], rng: Random, transparent: bool = False) -> Image.Image:
    """The picture of `scene`: RGB, or RGBA on nothing where `transparent`."""
    big = (size[0] * OVERSAMPLE, size[1] * OVERSAMPLE)
    image = Image.new("RGBA" if transparent else "RGB", big)
    canvas = ImageDraw.Draw(image)
    if not transparent and scene.is_field:
        _draw_field(canvas, big, scene.ground, COLOURS[scene.field], rng)
    elif not transparent:
        _draw_landscape(canvas, big, scene, rng)
    share = {1: 0.33, 2: 0.22, 3: 0.155, 4: 0.2, 5: 0.155}[scene.count]
    span = min(min(big), max(big) * (0.75 if scene.count == 1 else 1.0))
    radius = span * share * (1.0 if scene.large else 0.58) * rng.uniform(0.94, 1.06)
    base = _mix(COLOURS[scene.colour], (rng.randrange(256), rng.randrange(256), rng.randrange(256)), 0.06)
    for centre in _centres(scene, big, radius, rng):
        draw_thing(canvas, scene.thing, base, centre, radius)
    return image.reduce(OVERSAMPLE)


def main() -> None:
    """Draw one picture to the path given."""
    rng = Random(sys.argv[2] if len(sys.argv) > 2 else "0")
    scene = random_scene(rng)
    draw_scene(scene, (640, 480), rng).save(sys.argv[1])
    print(alt_text(scene, rng))


if __name__ == "__main__":
    main()
