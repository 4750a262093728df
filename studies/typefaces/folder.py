"""The rendered letters and digits as a folder of images, split by typeface."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL.Image import Image, fromarray

from stitchkit.data.demo import manifest_of, refuse_other, write_new_folder
from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.files import check_new_folder
from studies.typefaces.fonts import CHARACTERS, LEAST, Typeface, find_typefaces, split_typefaces
from studies.typefaces.glyphs import class_name, render_split

TYPEFACES = "typefaces.json"
"""The file that names the typefaces of each split."""
_SIDES = range(32, 65)


def write_glyphs(
    folder: Path,
    fonts: Sequence[Path],
    *,
    per_class: Mapping[str, int],
    side: int = 32,
    seed: int = 0,
    least: int = LEAST,
) -> str:
    """Write rendered letters and digits as `train/`, `validation/` and `test/`, unless they exist.

    Each typeface is in one split only. `typefaces.json` names it, with the SHA-256 of each font file, so that
    others can check that they have the same data. Returns what the folder has, in words.

    Args:
        folder: To write.
        fonts: Folders with fonts.
        per_class: The number of images of each class, by split.
        side: Of the images, in pixels: 32 to 64.
        seed: Of the split and of the images.
        least: The number of typefaces that are enough.

    Raises:
        InputError: The side is another one, there are too few typefaces, or the folder has something else.
    """
    if side not in _SIDES:
        raise InputError(f"--img-size is {side}; it must be {_SIDES[0]} to {_SIDES[-1]}")
    if not (folder / TYPEFACES).is_file():
        check_new_folder(folder)  # reading many fonts takes minutes
    found = find_typefaces(fonts, least=least)
    splits = split_typefaces(found.typefaces, seed)
    manifest = {
        **{"img_size": side, "seed": seed, "per_class": dict(per_class)},
        "typefaces": {split: [described(typeface) for typeface in part] for split, part in splits.items()},
    }
    text = manifest_of(manifest)
    refuse_other(folder, TYPEFACES, text)

    def images() -> Iterator[tuple[str, Image]]:
        for split, count in per_class.items():
            pixels = render_split(splits, split, per_class=count, side=side, seed=seed).images
            for number, image in enumerate(pixels):
                label, within = divmod(number, count)
                yield f"{split}/{class_name(CHARACTERS[label])}/{within:04d}.png", fromarray(image)

    counts = [
        f"{len(CHARACTERS) * count} {split} images in {counted(len(splits[split]), 'typeface')}"
        for split, count in per_class.items()
    ]
    said = f"{', '.join(counts)}, of {len(CHARACTERS)} classes"
    left_out = ", ".join(f"{count} {reason}" for reason, count in found.left_out.most_common())
    return write_new_folder(folder, images(), said, {TYPEFACES: text}) + f"\nfonts left out: {left_out or 'none'}"


def described(typeface: Typeface) -> dict[str, object]:
    """A typeface in `typefaces.json`."""
    faces = [{"file": face.name, "sha256": hashlib.sha256(face.read_bytes()).hexdigest()} for face in typeface.faces]
    return {"name": typeface.name, "faces": faces}
