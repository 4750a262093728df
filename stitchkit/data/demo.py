"""The data sets that are made here, as the image folders that an ImageNet user has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL.Image import Image

from stitchkit.data.demo_glyphs import read_demo_glyphs
from stitchkit.data.digits import read_digits
from stitchkit.errors import InputError
from stitchkit.files import check_new_folder, filling


def write_digits(folder: Path) -> str:
    """Write scans of digits as `train/` and `validation/`, one folder per class, unless they exist; return a note."""
    images = (
        (f"{split}/{label}/{number:04d}.png", image)
        for split in ("train", "validation") for number, image, label in read_digits(split)
    )  # fmt: skip
    return write_new_folder(folder, images, "1197 training and 600 validation images of 10 digits")


def write_demo_glyphs(folder: Path) -> str:
    """Write the demo's glyphs as `train/`, `validation/` and a flat `unlabelled/`, unless they exist; return a note."""

    def images() -> Iterator[tuple[str, Image]]:
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
    folder: Path, images: Iterator[tuple[str, Image]], content: str, texts: Mapping[str, str] | None = None
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
