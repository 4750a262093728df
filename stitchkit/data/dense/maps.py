"""Images, masks of class numbers and depth maps, decoded from files or bytes."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from stitchkit.data.decoding import BACK, UPRIGHT, Change, Decoding, check_image, limited, orientation
from stitchkit.display import counted
from stitchkit.errors import InputError, one_line
from stitchkit.settings.tasks import NOT_KNOWN

MOST_CLASSES = 255
NOT_UPRIGHT = "is turned by its EXIF orientation, and its map is not; save it upright, or add --no-exif"
UNKNOWN_DEPTH = 0.0
"""The depth of pixels that were not measured."""

Content: TypeAlias = str | bytes
"""A file by its path, or its bytes."""

_MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16B")
_MILLIMETRES = ("I", "I;16", "I;16B")
_MOST_PIXELS = 100_000_000
_FORMATS = {"image": None, "mask": ["PNG"], "depth map": ["PNG", "TIFF"]}  # those that Pillow may read; None for all


def _decode(kind: str, name: str, content: Content, *, is_whole: bool = True) -> tuple[Image.Image, bytes]:
    """A decoded image of a kind, or only its header, and the beginning of its file."""
    formats = _FORMATS[kind]
    try:
        _check_file(content)
        with open(content, "rb") if isinstance(content, str) else io.BytesIO(content) as file:
            head = file.read(26)
            file.seek(0)
            with limited():
                image = Image.open(file, formats=formats)
                check_image(image)
                turned = orientation(image)
                if is_whole:
                    image.load()
    except Exception as error:  # decoders raise many types
        raise _unreadable(kind, name, error, f" {' or '.join(formats)}" if formats else "n image") from error
    _check_mode(kind, name, image.mode)
    is_turned = is_whole and isinstance(image, TiffImageFile) and turned != UPRIGHT  # by Pillow
    return image.transpose(BACK[turned]) if is_turned else image, head


def _check_file(content: Content) -> None:
    """Refuse a path of no file; a pipe would wait for ever."""
    if isinstance(content, str) and not os.path.isfile(content):
        raise OSError("it does not exist" if not os.path.exists(content) else "it is not a file")


def _check_mode(kind: str, name: str, mode: str) -> None:
    if kind == "mask" and mode not in _MASK_MODES:
        what = "an image with transparency" if mode.startswith("LA") else "a colour image"
        raise InputError(f"mask '{name}' is {what} (mode {mode}), not class numbers; save it as a grey or palette PNG")
    if kind == "depth map" and mode not in (*_MILLIMETRES, "F"):
        what = "a 1-bit image" if mode == "1" else "an 8-bit image"
        raise InputError(
            f"depth map '{name}' is {what} (mode {mode}); save it as a PNG of 16 bits in millimetres, or as a .npy "
            "file of floats in metres"
        )


def header_of(kind: str, name: str, content: Content) -> tuple[tuple[int, int], int]:
    """Height and width as stored, and EXIF orientation, of an image, a mask or a depth map; no pixel is decoded."""
    if kind == "depth map" and _is_npy(content):
        height, width = _read_npy(name, str(content)).shape
        return (height, width), UPRIGHT
    image, _ = _decode(kind, name, content, is_whole=False)
    turned, size = orientation(image), (image.height, image.width)
    # Of a TIFF file on its side, Pillow gives the sides as they will be.
    return size[::-1] if turned > 4 and isinstance(image, TiffImageFile) else size, turned


def _is_npy(content: Content) -> bool:
    return isinstance(content, str) and Path(content).suffix.lower() == ".npy"


def _unreadable(kind: str, name: str, error: Exception, wanted: str = "") -> InputError:
    # Pillow would quote the open file in place of a cause.
    cause = f"it is not a{wanted}" if isinstance(error, UnidentifiedImageError) else one_line(error)
    return InputError(f"{kind} '{name}' cannot be read ({cause}); repair it, or remove its pair")


def read_image(name: str, content: Content, decoding: Decoding) -> tuple[Image.Image, Change]:
    """An image in the mode of the network, not turned by its EXIF orientation, and what decoding changed."""
    try:
        _check_file(content)
        return replace(decoding, exif=False).read(content if isinstance(content, str) else io.BytesIO(content))
    except Exception as error:  # decoders raise many types
        raise _unreadable("image", name, error, "n image") from error


def read_upright(name: str, content: Content, decoding: Decoding) -> tuple[Image.Image, Change]:
    """`read_image` without a mask, for a map of the image; one that its EXIF orientation would turn is refused."""
    if decoding.exif and header_of("image", name, content)[1] != UPRIGHT:
        raise InputError(f"image '{name}' is turned by its EXIF orientation, and its map would not be; save it upright")
    return read_image(name, content, decoding)


def read_mask(name: str, content: Content) -> NDArray[np.integer]:
    """The class numbers `[H, W]` of a mask: a PNG of grey values of 1 to 16 bits, or of places in a palette."""
    image, head = _decode("mask", name, content)
    numbers = np.asarray(image)
    if image.mode == "L":
        # Pillow stretches grey values of 2 and 4 bits to 0-255; byte 24 of a PNG is their width.
        numbers = numbers // (255 // (2 ** min(head[24], 8) - 1))
    return numbers.astype(np.uint8) if image.mode == "1" else numbers


def number_classes(
    numbers: NDArray[np.integer], num_classes: int, *, name: str, skips_zero: bool = False
) -> NDArray[np.uint8]:
    """Class numbers from 0, and `NOT_KNOWN`, `[H, W]`; with `skips_zero`, the file numbers from 1 and 0 is ignored."""
    check_classes(numbers, num_classes, name=name, skips_zero=skips_zero)
    ignored = numbers == NOT_KNOWN
    if skips_zero:
        ignored |= numbers == 0
    classes = (numbers - int(skips_zero)).astype(np.uint8)
    classes[ignored] = NOT_KNOWN
    return classes


def check_classes(numbers: NDArray[np.integer], num_classes: int, *, name: str, skips_zero: bool = False) -> None:
    """Refuse class numbers above those of the data set; arguments as for `number_classes`."""
    largest, first = largest_class(numbers), int(skips_zero)
    if largest >= first + num_classes:
        raise InputError(
            f"mask '{name}' has the class number {largest}; the data set has {counted(num_classes, 'class')}, numbered "
            f"from {first}, and {NOT_KNOWN} is ignored; correct the mask, or the number of classes"
        )


def largest_class(numbers: NDArray[np.integer]) -> int:
    """The largest class number in a mask; -1 if all of it is ignored."""
    kept = numbers[numbers != NOT_KNOWN]
    return int(kept.max()) if kept.size else -1


def read_depth(name: str, content: Content) -> NDArray[np.float32]:
    """A depth map `[H, W]` in metres; `UNKNOWN_DEPTH` where the file has 0, NaN or infinity.

    The file is a PNG of 16 bits in millimetres, or a TIFF or `.npy` file of floats in metres.
    """
    if _is_npy(content):
        metres = _read_npy(name, str(content))
    else:
        image, _ = _decode("depth map", name, content)
        metres = np.asarray(image) if image.mode == "F" else np.asarray(image) / 1000
    with np.errstate(over="ignore"):
        metres = np.array(metres, dtype=np.float32)  # no longer a map of the file
    metres[~np.isfinite(metres)] = UNKNOWN_DEPTH
    if metres.min(initial=0) < 0:
        raise InputError(f"depth map '{name}' has the negative depth {metres.min():g} m; write 0 where it is unknown")
    return metres


def _read_npy(name: str, path: str) -> NDArray[np.floating]:
    """Floats `[H, W]`, read only when used, so that a header cannot promise more than the file has."""
    try:
        if not os.path.isfile(path):
            raise OSError("it is not a file")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # damaged headers raise many types
        raise _unreadable("depth map", name, error) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(f"depth map '{name}' is an archive of arrays; save one array with numpy.save")
    if array.ndim != 2 or array.dtype.kind != "f" or array.size > _MOST_PIXELS:
        raise InputError(
            f"depth map '{name}' has the shape {array.shape} and the type {array.dtype}; save floats in metres as "
            f"(height, width), at most {_MOST_PIXELS:,}"
        )
    return array
