"""A small art data set, drawn from real notations and laid out as the real archive is.

    python -m blip_art.data demo -o runs/demo-data/archive --pictures 2000
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from PIL import Image, ImageColor, ImageDraw

from blip_art.data.motifs import MOTIFS, Point, Shape
from blip_art.data.progress import progress
from blip_art.errors import UserError
from blip_art.files import PathLike, read_json, write_json, written_aside

# Raise it when the drawing changes: folders drawn by another version are drawn again.
VERSION = 1
# Drawn this much larger and scaled down, which smooths the outlines.
_OVERSIZE = 2

_PAPERS = ("#f6f1e4", "#efe6d0", "#ffffff", "#dfe7ea", "#e9dcc9", "#cfd8c8", "#f3d9c9", "#c9cfdd")
_LINE_COLOURS = ("#2b2118", "#1d1d1d", "#5a3820", "#27344a")
# Motifs, size as a share of the picture, and centres for one, two and three motifs.
_LAYOUTS: Dict[int, List[Tuple[float, Tuple[Point, ...]]]] = {
    1: [(0.40, ((0.5, 0.5),)), (0.32, ((0.45, 0.55),)), (0.36, ((0.55, 0.45),))],
    2: [(0.22, ((0.27, 0.5), (0.73, 0.5))), (0.21, ((0.5, 0.27), (0.5, 0.73))),
        (0.24, ((0.29, 0.3), (0.71, 0.7))), (0.24, ((0.71, 0.3), (0.29, 0.7)))],
    3: [(0.20, ((0.27, 0.28), (0.73, 0.28), (0.5, 0.73))),
        (0.20, ((0.5, 0.27), (0.27, 0.73), (0.73, 0.73))),
        (0.16, ((0.24, 0.24), (0.5, 0.52), (0.75, 0.78)))],
}
# Emblem books return to few motifs. The themes share none, so that the grouped split, which ties
# books through equal captions, does not tie everything to everything.
_BOOKS: Dict[str, Tuple[str, ...]] = {
    "uiuc_832w91o": ("24A", "24B", "24D", "25H11"), "embhab_uk-70": ("24A", "24B", "24D", "25H11"),
    "uiuc_241z5p": ("25F3", "25F6", "25G3", "25G41"), "embmne_ripa1613": ("11D12", "31A2221",
                                                                        "41B31", "49M32"),
    "bsb00029770": ("25I3", "41A3281", "44B191", "46C24"),
}
_SHARE_IN_BOOKS = 0.12


class Planned(NamedTuple):
    """One picture to draw."""

    name: str
    notations: List[str]
    seed: str


def draw_demo(output: PathLike, pictures: int = 2000, seed: int = 42, size: int = 128) -> bool:
    """Write pictures and data.json to `output`; False when all of it is there already.

    An interrupted drawing goes on where it stopped.

    Raises:
        UserError: numbers that make no data set, a folder that refuses writing, or another
            archive's.
    """
    if pictures < 10 or size < 32:
        raise UserError(f"a demo data set has at least 10 pictures of 32 pixels, not {pictures} "
                        f"of {size}")
    folder = Path(output)
    made = {"version": VERSION, "pictures": pictures, "seed": seed, "size": size}
    marker = folder / "demo.json"
    if (folder / "data.json").exists() and not marker.exists():
        raise UserError(f"{folder} has a data.json that was not drawn here and would be lost; "
                        "choose another folder")
    same = marker.exists() and read_json(marker) == made
    plan = plan_demo(pictures, seed)
    missing = [p for p in plan if not same or not (folder / p.name).exists()]
    if not missing and (folder / "data.json").exists():
        return False
    write_json(marker, made)
    for planned in progress(missing, "drawing", "pictures", len(missing)):
        with written_aside(folder / planned.name) as aside:
            draw(planned, size).save(aside, "JPEG", quality=88)
    write_json(folder / "data.json", {p.name: p.notations for p in plan}, indent=1)
    return True


def plan_demo(pictures: int, seed: int) -> List[Planned]:
    """Names and notations: flat names as most of the archive's, and a few books."""
    rng = random.Random(seed)
    plan: Dict[str, Planned] = {}
    plates = dict.fromkeys(_BOOKS, 0)
    while len(plan) < pictures:
        if rng.random() < _SHARE_IN_BOOKS:
            book = rng.choice(list(_BOOKS))
            plates[book] += rng.randint(1, 4)
            plate = f"_{plates[book]}" if book.startswith("bsb") else f"_pic{plates[book]:03d}"
            name = f"{book}{plate}.jpg"
            motifs: Tuple[str, ...] = _BOOKS[book]
        else:
            number = rng.randrange(-2**31, 2**31)
            name, motifs = f"IIHIM_{number}.jpg", tuple(MOTIFS)
        count = rng.choices((1, 2, 3), (4, 4, 2))[0]
        plan[name] = Planned(name, sorted(rng.sample(motifs, count)), f"{seed} {name}")
    return list(plan.values())


def draw(planned: Planned, size: int) -> Image.Image:
    """The picture; equal plans give equal pictures."""
    rng = random.Random(planned.seed)
    side = size * _OVERSIZE
    paper = rng.choice(_PAPERS)
    picture = Image.new("RGB", (side, side), paper)
    pen = ImageDraw.Draw(picture)
    _background(pen, rng, side, paper)
    flat = rng.random() < 0.65
    radius, centres = rng.choice(_LAYOUTS[len(planned.notations)])
    motifs = list(planned.notations)
    rng.shuffle(motifs)
    for notation, (x, y) in zip(motifs, centres):
        place = _Place(side * (x + rng.uniform(-0.035, 0.035)),
                       side * (y + rng.uniform(-0.035, 0.035)),
                       side * radius * rng.uniform(0.85, 1.1), rng.uniform(-0.17, 0.17))
        _motif(pen, rng, notation, place, flat)
    return picture.resize((size, size), Image.Resampling.LANCZOS)


class _Place(NamedTuple):
    x: float
    y: float
    radius: float
    turn: float

    def put(self, points: Sequence[Point]) -> List[Point]:
        cos, sin = math.cos(self.turn) * self.radius, math.sin(self.turn) * self.radius
        return [(self.x + cos * x - sin * y, self.y + sin * x + cos * y) for x, y in points]


def _background(pen: ImageDraw.ImageDraw, rng: random.Random, side: int, paper: str) -> None:
    """Plain paper, a ground line, hatching or a frame."""
    kind = rng.choice(("plain", "ground", "hatching", "frame"))
    shade = _shade(paper, 0.9)
    if kind == "ground":
        pen.rectangle((0, side * rng.uniform(0.6, 0.8), side, side), fill=shade)
    elif kind == "hatching":
        gap = rng.randint(side // 24, side // 12)
        lean = rng.choice((-1, 1)) * side // 3
        for x in range(-side, 2 * side, gap):
            pen.line((x, 0, x + lean, side), fill=shade, width=max(1, side // 128))
    elif kind == "frame":
        edge = side // 32
        pen.rectangle((edge, edge, side - edge, side - edge), outline=_shade(paper, 0.7),
                      width=edge // 2)


def _motif(pen: ImageDraw.ImageDraw, rng: random.Random, notation: str, place: _Place,
           flat: bool) -> None:
    """Flat colours with a thin outline, or a line drawing like a woodcut."""
    motif = MOTIFS[notation]
    colour = rng.choice(motif.colours)
    tones = (colour, _shade(colour, 0.65), _shade(colour, 1.45))
    ink = rng.choice(_LINE_COLOURS)
    width = max(1, round(place.radius / (26 if flat else 14)))
    shapes: List[Shape] = motif.shapes(rng)
    for points, tone in shapes:
        outline = place.put(points)
        fill: Any = tones[tone] if flat else "#fdfbf5" if tone != 1 else ink
        pen.polygon(outline, fill=fill)
        pen.line([*outline, outline[0], outline[1]], fill=ink, width=width, joint="curve")


def _shade(colour: str, factor: float) -> Tuple[int, ...]:
    """Darker below 1, lighter above."""
    return tuple(min(255, round(level * factor)) for level in ImageColor.getrgb(colour)[:3])
