"""The data of `make demo-backbone`: letters and digits, rendered in several fonts."""

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
_COUNTS = {"train": 50, "validation": 20, "unlabelled": 100}
"""Images of each glyph."""
_SIDE, _DRAWN = 32, 96


def name_of(glyph: str) -> str:
    """The last word of its name in Unicode, such as `A`, `Gamma` or `Two`; names differ in more than their case."""
    word = unicodedata.name(glyph).split()[-1]
    return word if len(word) == 1 else word.title()


def read_glyphs(part: str) -> Iterator[tuple[str, int, Image.Image]]:
    """The name, the number among those of its name, and the image of each glyph of a part: 32 x 32, grey.

    Font, size, position, angle and slant are random. Each image has its own seed, so they are always the same, and
    those of different parts are different.

    Args:
        part: `train`, `validation` or `unlabelled`.
    """
    for glyph in GLYPHS:
        for number in range(_COUNTS[part]):
            yield name_of(glyph), number, _render(glyph, random.Random(f"{part} {glyph} {number}"))


def _render(glyph: str, chance: random.Random) -> Image.Image:
    """A white glyph on black."""
    font, centre = _font(chance.choice(_FONTS), chance.randint(60, 84)), _DRAWN / 2
    image = Image.new("L", (_DRAWN, _DRAWN))
    ImageDraw.Draw(image).text((centre, centre), glyph, fill=255, font=font, anchor="mm")
    angle, slant = math.radians(chance.uniform(-15, 15)), chance.uniform(-0.15, 0.15)
    right, down = chance.uniform(-6, 6), chance.uniform(-6, 6)
    # Where the pixel at (x, y) comes from: a + bx + cy, about the centre.
    rows = ((math.cos(angle), math.sin(angle) + slant, right), (-math.sin(angle), math.cos(angle), down))
    affine = [term for b, c, shift in rows for term in (b, c, centre + shift - (b + c) * centre)]
    moved = image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return moved.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path  # only here: its import takes a while

    return ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf", f"{name}.ttf")), size)
