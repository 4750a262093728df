"""Image folders: their splits and classes.

A class is a folder, at any depth within a split, with images directly in it; folders with the same name are one class.
Hidden folders and files, folders without images, and images beside the class folders are ignored.
"""

from __future__ import annotations

import os
from pathlib import Path

from timm.data import ImageDataset
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from stitchkit.classes import in_order
from stitchkit.data.labelled_images import class_names
from stitchkit.data.split_rule import names_of
from stitchkit.errors import InputError

SUFFIXES = ";".join(IMG_EXTENSIONS)
"""Suffixes of image files, as timm takes them."""


def find_split(root: Path, split: str) -> Path:
    """The folder of a split, by `split_rule`; timm's `train[:10%]` is `train` here."""
    name = split.split("[")[0]
    for one in names_of(name):
        if is_split(root / one):
            return root / one
    raise InputError(
        f"data folder '{root}' has no {name}/ folder with class folders in it; it needs train/ and validation/ "
        "(or val/, or test/), with one folder per class in each"
    )


def is_split(folder: Path) -> bool:
    """Whether a folder contains a folder that is not hidden; ImageNet's `test/` has only images, without classes."""
    return folder.is_dir() and any(not place.name.startswith(".") and place.is_dir() for place in folder.iterdir())


def open_images(folder: Path, *, mode: str = "RGB", class_map: str = "", suffixes: str = SUFFIXES) -> ImageDataset:
    """Images of a split's folder, with their classes numbered in the order of `stitchkit.classes`.

    Args:
        folder: The split.
        mode: PIL mode to which images are converted; empty for no conversion.
        class_map: File that maps class names to numbers; other classes are left out.
        suffixes: Like `SUFFIXES`.
    """
    empty = InputError(f"'{folder}' has no images in class folders; files must end with {suffixes.replace(';', ', ')}")
    try:
        reader = ReaderImageFolder(str(folder), class_map=class_map, input_key=suffixes)
    except RuntimeError:
        raise empty from None
    # timm sorts a set of names, so names that compare equal there, such as 1 and 01, are numbered by chance.
    classes = [_class_of(path, str(folder)) for path, _ in reader.samples]
    if not class_map:
        reader.class_to_idx = {name: number for number, name in enumerate(in_order(set(classes) - {""}))}
    numbers = reader.class_to_idx
    reader.samples = [(path, numbers[name]) for (path, _), name in zip(reader.samples, classes, strict=True) if name]
    if not reader.samples:
        raise empty
    images = ImageDataset(str(folder), reader=reader, input_img_mode=mode)
    images.classes, images.split = class_names(reader), folder.name
    return images


def _class_of(path: str, folder: str) -> str:
    """The class of an image; empty if it has none."""
    # Strings instead of `Path`, which is slow for the millions of images of some data sets.
    parts = path[len(folder) :].strip(os.sep).split(os.sep)
    return "" if len(parts) < 2 or any(part.startswith(".") for part in parts) else parts[-2]
