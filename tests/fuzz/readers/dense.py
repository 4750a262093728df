"""Readers of masks, depth maps, and the lists beside them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stitchkit.data.decoding import Decoding
from stitchkit.data.dense.maps import header_of, number_classes, read_depth, read_image, read_mask
from stitchkit.data.dense.pairs import open_pairs
from stitchkit.errors import InputError
from tests.fuzz.inputs import Seed
from tests.fuzz.readers.base import Reader


def _png(values: Any, palette: bytes = b"") -> Seed:
    image, file = Image.fromarray(values), io.BytesIO()
    if palette:
        image.putpalette(palette)
    image.save(file, "PNG")
    return Seed(file.getvalue())


def _npy(values: Any) -> Seed:
    file = io.BytesIO()
    np.save(file, values)
    return Seed(file.getvalue())


_NUMBERS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def _beside_pairs(folder: Path) -> Sequence[Seed]:
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
            Image.fromarray(_NUMBERS).save(folder / split / kind / "a.png")
    return [Seed(b"sky\nsea\n")]


def _beside_depths(folder: Path) -> Sequence[Seed]:
    Image.fromarray(_NUMBERS).save(folder / "a.png")
    Image.fromarray(_NUMBERS.astype(np.uint16)).save(folder / "d.png")
    return [Seed(b"/a.png /d.png 518.8\na.png None 518.8\na.png d.png\n")]


def _read_image(path: Path) -> object:
    with suppress(InputError):
        header_of("image", str(path), str(path))
    return read_image(str(path), str(path), Decoding())


def _read_depth(path: Path) -> object:
    with suppress(InputError):
        header_of("depth map", str(path), str(path))
    return read_depth(str(path), str(path))


def _read_mask(path: Path) -> object:
    with suppress(InputError):
        header_of("mask", str(path), str(path))
    return number_classes(read_mask(str(path), str(path)), 200, name=path.name, skips_zero=True)


READERS = {
    "mask": Reader(
        "fuzzed.png",
        [_png(_NUMBERS), _png(_NUMBERS, bytes(range(36))), _png(_NUMBERS.astype(np.uint16))],
        _read_mask,
    ),
    "image of a pair": Reader(
        "fuzzed.png",
        [_png(_NUMBERS), _png(_NUMBERS, bytes(range(36)))],
        _read_image,
    ),
    "depth map": Reader("fuzzed.npy", [_npy(_NUMBERS.astype(np.float32))], _read_depth),
    "depth map, PNG": Reader("fuzzed.png", [_png(_NUMBERS.astype(np.uint16))], _read_depth),
    "names of classes": Reader(
        "classes.txt", _beside_pairs, lambda path: open_pairs(path.parent, "val", "segmentation").classes
    ),
    "list of depth maps": Reader(
        "nyu_train.txt", _beside_depths, lambda path: open_pairs(path.parent, "train", "depth")[-1]
    ),
}
