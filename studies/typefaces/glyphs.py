"""Letters and digits rendered from the fonts of this machine, for the data set that is split by typeface."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stitchkit.data.demo import SCALE, moved
from studies.typefaces.fonts import CHARACTERS, Typeface, open_font

_CELLS = 3
"""An elastic warp moves the corners of 3 x 3 cells; between them it is linear."""


class Glyphs(NamedTuple):
    """Rendered images of one split.

    Args:
        images: `[N, H, W]`, grey, as bytes.
        labels: `[N]`: the place of each character among `CHARACTERS`.
        typefaces: `[N]`: the place of each image's typeface among those of the split.
    """

    images: np.ndarray
    labels: np.ndarray
    typefaces: np.ndarray


def class_name(character: str) -> str:
    """The name of a character's folder, such as `digit_0`, `upper_A` or `lower_a`."""
    return f"{'digit' if character.isdigit() else 'upper' if character.isupper() else 'lower'}_{character}"


def render_split(
    typefaces: Mapping[str, Sequence[Typeface]], split: str, *, per_class: int, side: int = 32, seed: int = 0
) -> Glyphs:
    """Render the images of a split: 62 characters, each `per_class` times, in the order of the classes.

    Typeface, style, size, position, angle, slant, a mild elastic warp, the greys of ink and ground, the pattern of the
    ground and the noise are random. Each image has its own seed, so a larger `per_class` only adds images.

    Args:
        typefaces: Those of each split, by `split_typefaces`.
        split: `train`, `validation` or `test`.
        per_class: The number of images of each character.
        side: Of the images, in pixels.
        seed: Another one gives other images.
    """
    available = typefaces[split]
    rendered = []
    for label, number in product(range(len(CHARACTERS)), range(per_class)):
        chance = random.Random(f"{seed} {split} {CHARACTERS[label]} {number}")
        typeface = chance.randrange(len(available))
        face = chance.choice(available[typeface].faces)
        rendered.append((_on_ground(_draw(CHARACTERS[label], face, side, chance), chance), label, typeface))
    images, labels, numbers = zip(*rendered, strict=True)
    return Glyphs(np.stack(images), np.array(labels), np.array(numbers))


def _bent(image: Image.Image, chance: random.Random) -> Image.Image:
    """A drawn glyph, warped as if on rubber."""
    cell, most = image.width // _CELLS, image.width / 24
    corners = {
        (column, row): (column * cell + chance.uniform(-most, most), row * cell + chance.uniform(-most, most))
        for column, row in product(range(_CELLS + 1), repeat=2)
    }
    mesh = []
    for x, y in product(range(_CELLS), repeat=2):
        around = ((x, y), (x, y + 1), (x + 1, y + 1), (x + 1, y))
        mesh.append(((x * cell, y * cell, (x + 1) * cell, (y + 1) * cell), [z for at in around for z in corners[at]]))
    return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def _draw(character: str, face: Path, side: int, chance: random.Random) -> np.ndarray:
    """The share of ink in each pixel of a glyph, `[side, side]`."""
    drawn = side * SCALE
    font, capital = _fitted(face, drawn)
    left, _, right, _ = font.getbbox(character, anchor="ls")
    image = Image.new("L", (drawn, drawn))
    # On one baseline, since in many typefaces size and height are all that tells c from C.
    place = ((drawn - left - right) / 2, (drawn + capital) / 2)
    ImageDraw.Draw(image).text(place, character, fill=255, font=font, anchor="ls")
    warped = _bent(moved(image, chance, scale=chance.uniform(0.9, 1.25)), chance)
    return np.asarray(warped.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255


def _on_ground(ink: np.ndarray, chance: random.Random) -> np.ndarray:
    """A glyph in a random grey on a ground of another one, which may have a pattern, with noise; as bytes."""
    side = len(ink)
    contrast = chance.uniform(70, 200)
    darker = chance.uniform(0, 255 - contrast)
    ground, colour = chance.sample((darker, darker + contrast), 2)
    pattern = np.float32(0)
    match chance.choice(("plain", "gradient", "texture")):
        case "gradient":
            angle, along = chance.uniform(0, math.tau), np.linspace(-1, 1, side, dtype=np.float32)
            pattern = math.cos(angle) * along + math.sin(angle) * along[:, None]
        case "texture":
            grains = chance.choice((4, 8, 16))
            coarse = Image.frombytes("L", (grains, grains), chance.randbytes(grains * grains))
            pattern = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) / 127.5 - 1
    noise = np.frombuffer(chance.randbytes(side * side), dtype=np.uint8).reshape(side, side) / 127.5 - 1
    behind = ground + pattern * chance.uniform(0.1, 0.4) * contrast
    seen = behind + (colour - behind) * ink + noise * chance.uniform(0, 20)
    return np.asarray(seen.round().clip(0, 255), dtype=np.uint8)


@cache
def _fitted(face: Path, drawn: int) -> tuple[ImageFont.FreeTypeFont, float]:
    """A font of a size where no character leaves the image, and the height of its capitals, at most half of it."""
    font = open_font(face, drawn)
    boxes = [font.getbbox(character, anchor="ls") for character in CHARACTERS]
    capital = -font.getbbox("H", anchor="ls")[1]
    wide = max(right - left for left, _, right, _ in boxes)
    # Above and below the middle of a capital, which is that of the image.
    high = 2 * max(max(-capital / 2 - top, bottom + capital / 2) for _, top, _, bottom in boxes)
    size = max(1, int(drawn * drawn / max(2 * capital, wide, high)))
    return open_font(face, size), capital * size / drawn
