"""The rendered glyphs of `make demo-backbone`: 44 letters and digits in 12 fonts that come with matplotlib."""

from __future__ import annotations

import math
import random
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

GLYPHS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "ΓΔΘΛΞΠΣΦΨΩ" + "23456789"
"""Those that no other one resembles: no small letters, and neither 0 nor 1."""
_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
"""Of the fonts that come with matplotlib."""
_COUNTS = {"train": 50, "validation": 20, "unlabelled": 100}  # images of each glyph
_SIDE = 32
SCALE = 3
"""Glyphs are drawn larger and made smaller at the end, so that their edges are smooth."""


def name_of(glyph: str) -> str:
    """The last word of its name in Unicode, such as `A`, `Gamma` or `Two`; names differ in more than their case."""
    word = unicodedata.name(glyph).split()[-1]
    return word if len(word) == 1 else word.title()


def read_demo_glyphs(part: str) -> Iterator[tuple[str, int, Image.Image]]:
    """Name, number within the name, and 32 x 32 grey image of each glyph of `train`, `validation` or `unlabelled`.

    Font, size, position, angle and slant are random, with a seed for each image.
    """
    for glyph in GLYPHS:
        for number in range(_COUNTS[part]):
            yield name_of(glyph), number, _render(glyph, random.Random(f"{part} {glyph} {number}"))


def _render(glyph: str, chance: random.Random) -> Image.Image:
    drawn = _SIDE * SCALE
    font, centre = _font(chance.choice(_FONTS), chance.randint(60, 84)), drawn / 2
    image = Image.new("L", (drawn, drawn))
    ImageDraw.Draw(image).text((centre, centre), glyph, fill=255, font=font, anchor="mm")
    return moved(image, chance).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)


def moved(image: Image.Image, chance: random.Random, scale: float = 1.0) -> Image.Image:
    """A drawn glyph, turned, slanted and shifted by chance, and made smaller by `scale`."""
    centre, most = image.width / 2, image.width / 16
    angle, slant = math.radians(chance.uniform(-15, 15)), chance.uniform(-0.15, 0.15)
    right, down = chance.uniform(-most, most), chance.uniform(-most, most)
    # Where the pixel at (x, y) comes from: a + bx + cy, about the centre.
    rows = ((math.cos(angle), math.sin(angle) + slant, right), (-math.sin(angle), math.cos(angle), down))
    terms = [(b * scale, c * scale, shift) for b, c, shift in rows]
    affine = [term for b, c, shift in terms for term in (b, c, centre + shift - (b + c) * centre)]
    return image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path  # only here: its import takes a while

    return ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf", f"{name}.ttf")), size)
