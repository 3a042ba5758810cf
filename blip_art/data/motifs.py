"""The motifs of the demo data set: shapes in a square from -1 to 1, y down, with real notations.

    for shape in MOTIFS["24A"].shapes(random.Random(1)): ...
"""

from __future__ import annotations

import math
import random
from typing import Callable, Dict, List, NamedTuple, Tuple

Point = Tuple[float, float]


class Shape(NamedTuple):
    """A closed outline; tone 0 is the motif's colour, 1 its darker, 2 its lighter one."""

    points: List[Point]
    tone: int = 0


class Motif(NamedTuple):
    """What is drawn for a notation, and in which colours."""

    name: str
    shapes: Callable[[random.Random], List[Shape]]
    colours: Tuple[str, ...]


def _oval(x: float, y: float, rx: float, ry: float, tone: int = 0, start: float = 0,
          end: float = 360) -> Shape:
    steps = 36
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return Shape([(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles], tone)


def _box(left: float, top: float, right: float, bottom: float, tone: int = 0) -> Shape:
    return Shape([(left, top), (right, top), (right, bottom), (left, bottom)], tone)


def _spikes(count: int, outer: float, inner: float, turn: float = 0) -> List[Point]:
    """Points that alternate between two circles."""
    radii = [outer, inner] * count
    angles = [math.pi * i / count - math.pi / 2 + turn for i in range(2 * count)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles)]


def _sun(rng: random.Random) -> List[Shape]:
    rays = rng.choice((10, 12, 16))
    return [Shape(_spikes(rays, 1, 0.62), 1), _oval(0, 0, 0.55, 0.55)]


def _moon(rng: random.Random) -> List[Shape]:
    side = rng.choice((-1, 1))
    outer = _oval(0, 0, 0.95, 0.95, 0, 60, 300).points
    inner = _oval(0.4, 0, 0.85, 0.83, 0, 285, 75).points
    return [Shape([(side * x, y) for x, y in outer + inner])]


def _stars(rng: random.Random) -> List[Shape]:
    points = rng.choice((5, 6))
    places = [(-0.45, -0.4, 0.52), (0.5, -0.15, 0.48), (-0.1, 0.55, 0.45)]
    return [Shape([(x + s * px, y + s * py) for px, py in _spikes(points, 1, 0.42)])
            for x, y, s in places]


def _tree(rng: random.Random) -> List[Shape]:
    trunk = _box(-0.13, 0.2, 0.13, 1, 1)
    if rng.random() < 0.5:
        tiers = [(-0.95, 0.45), (-0.5, 0.6), (-0.05, 0.75)]
        return [trunk] + [Shape([(0, y), (w, y + 0.6), (-w, y + 0.6)]) for y, w in tiers]
    return [trunk, _oval(0, -0.35, 0.62, 0.62), _oval(-0.42, -0.05, 0.4, 0.36),
            _oval(0.42, -0.05, 0.4, 0.36)]


def _flower(rng: random.Random) -> List[Shape]:
    petals = rng.choice((5, 6, 8))
    turns = [2 * math.pi * i / petals for i in range(petals)]
    leaf = Shape([(0, 0.75), (0.25, 0.45), (0.55, 0.5), (0.3, 0.75)], 1)
    return [_box(-0.05, 0, 0.05, 1, 1), leaf,
            *(_oval(0.36 * math.cos(a), -0.35 + 0.36 * math.sin(a), 0.25, 0.25) for a in turns),
            _oval(0, -0.35, 0.2, 0.2, 2)]


def _fish(rng: random.Random) -> List[Shape]:
    side = rng.choice((-1, 1))
    shapes = [Shape([(0.45, 0), (1, -0.45), (0.88, 0), (1, 0.45)], 1),
              Shape([(-0.25, -0.3), (0.15, -0.62), (0.3, -0.2)], 1),
              _oval(-0.15, 0, 0.75, 0.42), _oval(-0.6, -0.1, 0.08, 0.08, 2)]
    return [Shape([(side * x, y) for x, y in shape.points], shape.tone) for shape in shapes]


def _bird(rng: random.Random) -> List[Shape]:
    side = rng.choice((-1, 1))
    shapes = [Shape([(0.35, 0.1), (1, 0.0), (0.95, 0.3), (0.35, 0.35)], 1),
              _oval(0, 0.2, 0.55, 0.36), _oval(-0.48, -0.15, 0.27, 0.27),
              Shape([(-0.7, -0.22), (-1, -0.1), (-0.7, -0.02)], 2),
              Shape([(-0.25, 0.1), (0.45, -0.85), (0.4, 0.2)], 1),
              _box(-0.1, 0.5, -0.04, 0.9, 1), _box(0.12, 0.5, 0.18, 0.9, 1)]
    return [Shape([(side * x, y) for x, y in shape.points], shape.tone) for shape in shapes]


def _ship(rng: random.Random) -> List[Shape]:
    hull = Shape([(-1, 0.35), (1, 0.35), (0.65, 0.85), (-0.65, 0.85)], 1)
    pennant = Shape([(0, -1), (0.35, -0.9), (0, -0.8)])
    sails = [Shape([(0.08, -0.75), (0.85, 0.22), (0.08, 0.22)], 2),
             Shape([(-0.08, -0.55), (-0.7, 0.22), (-0.08, 0.22)], 2)]
    return [hull, _box(-0.04, -1, 0.04, 0.35, 1), pennant, *sails[:rng.choice((1, 2, 2))]]


def _crown(rng: random.Random) -> List[Shape]:
    count = rng.choice((3, 5))
    step = 1.8 / (count - 1)
    tips = [(-0.9 + step * i, -0.6) for i in range(count)]
    zigzag: List[Point] = []
    for i, tip in enumerate(tips):
        zigzag.append(tip)
        if i < count - 1:
            zigzag.append((tip[0] + step / 2, 0.05))
    return [Shape([*zigzag, (0.75, 0.6), (-0.75, 0.6)]), _box(-0.78, 0.42, 0.78, 0.72, 1),
            *(_oval(x, y - 0.05, 0.12, 0.12, 2) for x, y in tips)]


def _house(rng: random.Random) -> List[Shape]:
    chimney = _box(0.35, -0.85, 0.55, -0.3, 1)
    windows = [_box(-0.5, 0.15, -0.22, 0.45, 2), _box(0.28, 0.15, 0.55, 0.45, 2)]
    return [chimney, _box(-0.75, -0.05, 0.75, 0.9), Shape([(-0.95, -0.05), (0, -0.85),
            (0.95, -0.05)], 1), _box(-0.13, 0.4, 0.15, 0.9, 1), *windows[:rng.choice((1, 2))]]


def _mountains(rng: random.Random) -> List[Shape]:
    peak = rng.uniform(-0.15, 0.15)
    return [Shape([(-1.05, 0.75), (-0.45, -0.25), (0.15, 0.75)], 1),
            Shape([(0.0, 0.75), (0.6, -0.35), (1.05, 0.75)], 1),
            Shape([(-0.75, 0.75), (peak, -0.85), (0.75, 0.75)]),
            Shape([(peak - 0.2, -0.42), (peak, -0.85), (peak + 0.2, -0.42), (peak, -0.3)], 2)]


def _key(rng: random.Random) -> List[Shape]:
    teeth = [_box(0.55, 0.08, 0.68, 0.42), _box(0.8, 0.08, 0.93, 0.5)]
    return [_box(-0.4, -0.1, 1, 0.1), _oval(-0.6, 0, 0.4, 0.4), _oval(-0.6, 0, 0.2, 0.2, 2),
            *teeth, *([_box(0.3, 0.08, 0.43, 0.35)] if rng.random() < 0.5 else [])]


def _heart(rng: random.Random) -> List[Shape]:
    turns = [2 * math.pi * i / 40 for i in range(40)]
    outline = [(0.95 * math.sin(t) ** 3, -(0.78 * math.cos(t) - 0.3 * math.cos(2 * t)
                - 0.12 * math.cos(3 * t) - 0.06 * math.cos(4 * t))) for t in turns]
    return [Shape(outline)]


def _cross(rng: random.Random) -> List[Shape]:
    width = rng.uniform(0.11, 0.17)
    return [Shape([(-width, -1), (width, -1), (width, -0.45), (0.65, -0.45),
                   (0.65, -0.45 + 2 * width), (width, -0.45 + 2 * width), (width, 1),
                   (-width, 1), (-width, -0.45 + 2 * width), (-0.65, -0.45 + 2 * width),
                   (-0.65, -0.45), (-width, -0.45)])]


def _book(rng: random.Random) -> List[Shape]:
    pages = [Shape([(0, -0.45), (side * 0.95, -0.65), (side * 0.95, 0.45), (0, 0.65)], tone)
             for side, tone in ((-1, 0), (1, 2))]
    lines = [Shape([(side * 0.15, y), (side * 0.8, y - 0.14), (side * 0.8, y - 0.08),
                    (side * 0.15, y + 0.06)], 1)
             for side in (-1, 1) for y in (-0.2, 0.08, 0.36)]
    return [*pages, *lines]


def _candle(rng: random.Random) -> List[Shape]:
    height = rng.uniform(-0.35, -0.1)
    return [_oval(0, 0.85, 0.6, 0.15, 1), _box(-0.2, height, 0.2, 0.85, 2),
            Shape([(0, height - 0.65), (0.2, height - 0.25), (0.1, height - 0.03),
                   (-0.1, height - 0.03), (-0.2, height - 0.25)])]


MOTIFS: Dict[str, Motif] = {
    "11D12": Motif("the cross ~ symbols of Christ", _cross, ("#6b4226", "#3d3d3d", "#8a2b2b")),
    "24A": Motif("sun as celestial body", _sun, ("#f2b81f", "#ee8a1c", "#e4572e")),
    "24B": Motif("moon as celestial body", _moon, ("#d9c65c", "#8d99ae", "#b8a13a")),
    "24D": Motif("stars", _stars, ("#e0b020", "#c79a2b", "#5c7cba")),
    "25F3": Motif("birds", _bird, ("#35618f", "#7a3b2e", "#4d4d4d")),
    "25F6": Motif("fishes", _fish, ("#3f8fa8", "#d9742b", "#6b7f8c")),
    "25G3": Motif("trees", _tree, ("#2f7d3b", "#5a8f29", "#1f5c4a")),
    "25G41": Motif("flowers", _flower, ("#d1495b", "#9b5de5", "#e07aa0")),
    "25H11": Motif("mountains", _mountains, ("#7d7f86", "#6a7b5a", "#8c6f56")),
    "25I3": Motif("farm or solitary house in landscape", _house,
                  ("#c98f5a", "#b5544a", "#a89f91")),
    "31A2221": Motif("heart", _heart, ("#c1121f", "#d6336c", "#9d1b3b")),
    "41A3281": Motif("key", _key, ("#8f7a3a", "#555b6e", "#7a5c30")),
    "41B31": Motif("candle", _candle, ("#f0a202", "#e85d04", "#d9a404")),
    "44B191": Motif("crown (symbol of sovereignty)", _crown, ("#d4a017", "#b8860b", "#c0a062")),
    "46C24": Motif("sailing-ship, sailing-boat", _ship, ("#8b5e34", "#5e4b3c", "#7f4f24")),
    "49M32": Motif("book", _book, ("#efe3c2", "#e5d3a0", "#d8cfc0")),
}
