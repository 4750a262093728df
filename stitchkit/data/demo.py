"""The data of the demos, as the image folders that an ImageNet user has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL.Image import Image

from stitchkit.data.digits import read_digits
from stitchkit.data.glyphs import read_glyphs
from stitchkit.errors import InputError
from stitchkit.files import fresh_folder, refuse_link


def write_digits(folder: Path) -> str:
    """Write real scans of digits as `train/` and `validation/`, one folder per class, unless they exist.

    Returns what the folder has, in words.
    """
    images = (
        (f"{split}/{label}/{number:04d}.png", image)
        for split in ("train", "validation") for number, image, label in read_digits(split)
    )  # fmt: skip
    return _write(folder, images, "1197 training and 600 validation images of 10 digits")


def write_glyphs(folder: Path) -> str:
    """Write rendered glyphs as `train/` and `validation/`, and others as `unlabelled/`, unless they exist.

    The latter lie in one folder, without class folders. Returns what the folder has, in words.
    """

    def images() -> Iterator[tuple[str, Image]]:
        for split in ("train", "validation"):
            yield from ((f"{split}/{name}/{number:04d}.png", image) for name, number, image in read_glyphs(split))
        # In another order than by class, and without the classes in their names.
        mixed = sorted(read_glyphs("unlabelled"), key=lambda found: (found[1], found[0]))
        yield from ((f"unlabelled/{number:04d}.png", image) for number, (_, _, image) in enumerate(mixed))

    return _write(folder, images(), "2200 training and 880 validation images of 44 glyphs, and 4400 without labels,")


def _write(folder: Path, images: Iterator[tuple[str, Image]], said: str) -> str:
    """Write images to their places in a folder, unless it has them."""
    if (folder / "validation").is_dir() and (folder / "train").is_dir():
        return f"{folder} already exists"
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"'{folder}' is not empty; choose a new folder")
    refuse_link(folder)
    # Written under another name first, so that an interrupted command leaves no incomplete data set.
    unfinished = fresh_folder(folder.with_name(folder.name + ".unfinished"))
    for name, image in images:
        place = unfinished / name
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place)
    unfinished.rename(folder)  # also replaces an empty folder
    return f"{said} are in {folder}"
