"""The data sets that are made here, as the image folders that an ImageNet user has."""

from __future__ import annotations

import json
import math
import random
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stitchkit.errors import InputError
from stitchkit.files import check_new_folder, filling

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
_VALIDATION = 600  # images of digits
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


def read_digits(split: str) -> Iterator[tuple[int, Image.Image, int]]:
    """The number, image and label of each digit of `train` or `validation`.

    The 8 x 8 scans are enlarged to 32 x 32 without smoothing, so every pixel value is the original's. The split is
    fixed and stratified: 1,197 images to train, 600 to validate.
    """
    from sklearn.datasets import load_digits  # only here: its import takes a second
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    numbers = np.arange(len(digits.target))
    parts = train_test_split(numbers, test_size=_VALIDATION, stratify=digits.target, random_state=0)
    for number in parts[0] if split == "train" else parts[1]:
        pixels = (digits.images[number] * (255 / 16)).round().astype(np.uint8)
        image = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
        yield int(number), image, int(digits.target[number])


def write_digits(folder: Path) -> str:
    """Write scans of digits as `train/` and `validation/`, one folder per class, unless they exist; return a note."""
    images = (
        (f"{split}/{label}/{number:04d}.png", image)
        for split in ("train", "validation") for number, image, label in read_digits(split)
    )  # fmt: skip
    return write_new_folder(folder, images, "1197 training and 600 validation images of 10 digits")


def write_demo_glyphs(folder: Path) -> str:
    """Write the demo's glyphs as `train/`, `validation/` and a flat `unlabelled/`, unless they exist; return a note."""

    def images() -> Iterator[tuple[str, Image.Image]]:
        for split in ("train", "validation"):
            yield from ((f"{split}/{name}/{number:04d}.png", image) for name, number, image in read_demo_glyphs(split))
        # In another order than by class, and without the classes in their names.
        mixed = sorted(read_demo_glyphs("unlabelled"), key=lambda glyph: (glyph[1], glyph[0]))
        yield from ((f"unlabelled/{number:04d}.png", image) for number, (_, _, image) in enumerate(mixed))

    return write_new_folder(folder, images(), "2200 training, 880 validation and 4400 unlabelled images of 44 glyphs")


def manifest_of(content: Mapping[str, object]) -> str:
    """The text of a file that says how a data set was made."""
    return json.dumps(content, indent=1) + "\n"


def refuse_other(folder: Path, name: str, manifest: str) -> None:
    """Refuse the folder of another data set than the one with this manifest, the file `name`."""
    file = folder / name
    if not (folder / "train").is_dir() or (file.is_file() and file.read_text(encoding="utf-8") == manifest):
        return
    how = f"has other images, as {name} in it says" if file.is_file() else f"is another data set, without {name}"
    raise InputError(f"'{folder}' {how}; choose a new folder")


def write_new_folder(
    folder: Path, images: Iterator[tuple[str, Image.Image]], content: str, texts: Mapping[str, str] | None = None
) -> str:
    """Write images and texts to a folder under their names, unless it has them; return a sentence about `content`."""
    if (folder / "train").is_dir() and (folder / "validation").is_dir():
        return f"{folder} already exists; nothing was written"
    check_new_folder(folder)
    with filling(folder) as unfinished:
        for name, image in images:
            path = unfinished / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        for name, text in (texts or {}).items():
            (unfinished / name).write_text(text, encoding="utf-8")
    return f"{content} are in {folder}"
