"""Typefaces: found among the fonts of folders, checked by what they draw, and split into parts."""

from __future__ import annotations

import logging
import random
import re
import string
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFont

from stitchkit.display import counted
from stitchkit.errors import InputError

_logger = logging.getLogger(__name__)

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
"""The 62 that a typeface must draw."""
SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
"""How much of the typefaces each split has."""
LEAST = 20
"""Typefaces that a data set needs; fewer would not tell a new one from those of training."""
_SUFFIXES = {".ttf", ".otf", ".ttc"}
_SIDE = 16
_ALIKE = ("0Oo", "1Iil", *(f"{letter}{letter.lower()}" for letter in "CFJKMPSUVWXYZ"))
"""Characters that often differ in nothing but their size, so that no shape tells which one is meant."""
_CASES = "ABDEGHNQRT"
"""Letters whose small form has another shape in nearly all typefaces."""
_LEGIBLE = 0.2
"""The share of digits, of capitals and of small letters that must resemble the same one of other families most."""
_SAME_DESIGN = 0.95
"""The least correlation of two faces with one design: at 0.95, clones and revivals do, and no others."""


class Typeface(NamedTuple):
    """One design in all its styles.

    Args:
        name: Its family's; the first one in the alphabet if several families share the design.
        faces: The font file of each style.
    """

    name: str
    faces: tuple[Path, ...]


class Found(NamedTuple):
    """What folders of fonts have.

    Args:
        typefaces: Those that draw all characters, by name.
        left_out: The number of font files that are not used, by the reason.
    """

    typefaces: tuple[Typeface, ...]
    left_out: Counter[str]


class _Face(NamedTuple):
    family: str
    style: str
    path: Path
    shapes: np.ndarray  # [62, 256]: each character stretched to a square of 16 x 16, with mean 0 and norm 1


def default_folders() -> list[Path]:
    """The folders of the system's and the user's fonts, and of matplotlib's, as far as they exist."""
    from matplotlib import get_data_path  # only here: its import takes a while

    home = Path.home()
    user = [home / ".fonts", home / ".local/share/fonts"]
    return [*filter(Path.is_dir, [Path("/usr/share/fonts"), *user, Path(get_data_path(), "fonts/ttf")])]


def find_typefaces(folders: Sequence[Path], *, least: int = LEAST) -> Found:
    """The typefaces of all fonts in folders, at any depth.

    Fonts are judged by what they draw: those are left out that lack a character, draw capitals for small letters, or
    draw something else than the letters that most others draw, such as icons. Of a style that is there twice the first
    one counts.

    Raises:
        InputError: A folder does not exist or is a file, or there are fewer than `least` typefaces.
    """
    for folder in folders:
        if not folder.is_dir():
            found = f"'{folder}' is not a folder" if folder.exists() else f"folder '{folder}' does not exist"
            raise InputError(f"{found}; choose one with fonts")
    _logger.info("reading the fonts in %s", ", ".join(map(str, folders)))
    left_out: Counter[str] = Counter()
    faces: dict[tuple[str, str], _Face] = {}
    for path in (path for folder in folders for path in sorted(folder.rglob("*"))):
        if path.suffix.lower() in _SUFFIXES and path.is_file():
            face = _read(path)
            if isinstance(face, str):
                left_out[face] += 1
            elif faces.setdefault((face.family, face.style), face) is not face:
                left_out["duplicated"] += 1
    typefaces = _by_design(_legible([faces[key] for key in sorted(faces)], left_out))
    if len(typefaces) < least:
        others = "".join(f", {counted(count, 'font')} {reason}" for reason, count in left_out.most_common())
        raise InputError(
            f"{counted(len(typefaces), 'typeface')} with all {len(CHARACTERS)} characters in "
            f"{', '.join(map(str, folders))} (styles of one design count once{others}); at least {least} are needed: "
            "name other folders with --fonts, or install packages such as Debian's "
            "fonts-aenigma, fonts-adf-*, fonts-league-*, fonts-lmodern, fonts-noto-core and fonts-tlwg-*"
        )
    return Found(tuple(typefaces), left_out)


def split_typefaces(typefaces: Sequence[Typeface], seed: int = 0) -> dict[str, tuple[Typeface, ...]]:
    """The typefaces of `train`, `validation` and `test`: each is in one of them, with all its styles."""
    mixed = sorted(typefaces, key=lambda typeface: random.Random(f"{seed} {typeface.name}").random())
    ends = [0, *(round(len(mixed) * share) for share in np.cumsum(list(SHARES.values())))]
    parts = (sorted(mixed[start:end]) for start, end in pairwise(ends))
    return {split: tuple(part) for split, part in zip(SHARES, parts, strict=True)}


def open_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font, or the first one of a collection; a single character needs no complex layout."""
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _read(path: Path) -> _Face | str:
    """What a font draws, or why it is left out."""
    try:
        font = open_font(path, 32)
        family, style = font.getname()
        # No font has the last code point: what is drawn for it stands for all that the font lacks.
        lacking = bytes(font.getmask("\U0010ffff"))
        masks = [font.getmask(character) for character in CHARACTERS]
    except (OSError, ValueError):
        return "unreadable"
    drawn = [bytes(mask) for mask in masks]
    if any(not any(mask) or mask == lacking for mask in drawn):
        return "lacking a character"
    images = [Image.frombytes("L", mask.size, pixels) for mask, pixels in zip(masks, drawn, strict=True)]
    squares = [image.resize((_SIDE, _SIDE), Image.Resampling.BOX, box=image.getbbox()) for image in images]
    return _Face(
        family or path.stem,
        style or "",
        path,
        _normalised(np.stack([np.asarray(square).ravel() for square in squares])),
    )


def _normalised(shapes: np.ndarray) -> np.ndarray:
    """Shapes `[..., 256]` with mean 0 and norm 1, so that their product is their correlation."""
    centred: np.ndarray = shapes.astype(np.float32) - shapes.mean(axis=-1, keepdims=True, dtype=np.float32)
    centred /= np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-6)
    return centred


def _legible(faces: Sequence[_Face], left_out: Counter[str]) -> list[_Face]:
    """The faces whose characters resemble those of the other families; the others are counted."""
    number = {character: position for position, character in enumerate(CHARACTERS)}
    kind = np.arange(len(CHARACTERS))
    for group in _ALIKE:
        kind[[number[character] for character in group]] = number[group[0]]
    small, capitals = ([number[letter] for letter in letters] for letters in (_CASES.lower(), _CASES))
    families = defaultdict(list)
    for face in faces:
        families[face.family].append(face)
    # Each family has one vote, however many styles it has.
    votes = {family: np.mean([face.shapes for face in own], axis=0) for family, own in families.items()}
    total = sum(votes.values())
    kept = []
    for face in faces:
        others = _normalised(total - votes[face.family] if len(votes) > 1 else total)
        nearest = np.argmax(face.shapes @ others.T, axis=1)
        right = kind[nearest] == kind
        if min(right[start:end].mean() for start, end in ((0, 10), (10, 36), (36, 62))) < _LEGIBLE:
            left_out["drawing no letters"] += 1
        elif np.sum(nearest[small] == capitals) > len(_CASES) / 3:
            left_out["drawing capitals for small letters"] += 1
        else:
            kept.append(face)
    return kept


def _by_design(faces: Sequence[_Face]) -> list[Typeface]:
    """Faces grouped into typefaces.

    Families are one typeface if their names begin alike (Noto Sans, Noto Serif; OCRA, OCRABold), or if two of their
    faces draw the same shapes, as clones of one design under several names do.
    """
    from scipy.sparse.csgraph import connected_components  # only here: its import takes a while

    shapes = np.stack([face.shapes.ravel() for face in faces]) if faces else np.empty((0, 1))
    same = shapes @ shapes.T > _SAME_DESIGN * len(CHARACTERS)
    words = [re.split(r"[\s_-]", face.family.casefold())[0] for face in faces]
    for number, word in enumerate(words):
        for other in range(number):
            short, long = sorted((word, words[other]), key=len)  # faces are in the order of names with capitals
            same[number, other] |= short == long or (len(short) > 3 and long.startswith(short))
    groups = defaultdict(list)
    for face, label in zip(faces, connected_components(same, directed=False)[1].tolist(), strict=True):
        groups[label].append(face)
    return [Typeface(group[0].family, tuple(face.path for face in group)) for group in groups.values()]
