"""One way to open an image, for every reader: first frame, EXIF orientation, depth, transparency, colour mode.

`docs/images.md` says what becomes of each format. An 8-bit image without EXIF orientation and transparency is exactly
`Image.open(file).convert(mode)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntFlag, auto
from importlib import import_module
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import EpsImagePlugin, ExifTags, Image, ImageMode, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from stitchkit.errors import InputError

with suppress(ImportError):  # HEIC, which Pillow alone cannot read
    import_module("pillow_heif").register_heif_opener()

# Pillow goes by the content of a file: it would start Ghostscript for a program that is called `image.png`.
EpsImagePlugin.gs_binary = False

ImageSource: TypeAlias = Image.Image | str | Path | IO[bytes]
"""An image, decoded or not, or its file."""

_LONGEST_SIDE = 100
UPRIGHT = 1
"""The EXIF orientation of most images."""
_EXIF_IN_PNG = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
_DEEP = ("I", "F")  # how the modes begin whose values are not 0 to 255
_MOST_FLOAT, _MOST_WHOLE = (1, 255, 65_535), (255, 65_535, 2**31 - 1)
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _SIGNED = 258, 339, 2
_COMPRESSION, _PLANAR, _SEPARATE = 259, 284, 2
_TRANSPOSE = Image.Transpose
BACK = {
    2: _TRANSPOSE.FLIP_LEFT_RIGHT, 3: _TRANSPOSE.ROTATE_180, 4: _TRANSPOSE.FLIP_TOP_BOTTOM, 5: _TRANSPOSE.TRANSPOSE,
    6: _TRANSPOSE.ROTATE_90, 7: _TRANSPOSE.TRANSVERSE, 8: _TRANSPOSE.ROTATE_270,
}  # fmt: skip
"""What undoes the turn of each EXIF orientation: Pillow turns TIFF files as it loads them."""


class _Png(PngImageFile):
    """A PNG whose transparent colour has the values of its decoded pixels; Pillow leaves it in those of the file."""

    def _open(self) -> None:
        super()._open()
        colour, stored = self.info.get("transparency"), str(self.tile[0].args)
        if isinstance(colour, int):
            self.info["transparency"] = colour * {"L;2": 85, "L;4": 17}.get(stored, 1)
        elif colour and stored == "RGB;16B":
            self.info["transparency"] = tuple(value >> 8 for value in colour)


Image.register_open("PNG", _Png, Image.OPEN["PNG"][1])


class Change(IntFlag):
    """What decoding did to an image, apart from the conversion of its colours."""

    TURNED = auto()
    SCALED = auto()
    COMPOSITED = auto()
    FIRST_FRAME = auto()


def check_image(image: Image.Image) -> None:
    """Refuse an undecoded image that would fill the memory or that Pillow would decode wrongly.

    Images are resized by their shorter side, so they must not be too narrow.
    """
    if max(image.size) > _LONGEST_SIDE * min(image.size):
        raise InputError(f"it is {image.width:,} x {image.height:,} pixels; at most {_LONGEST_SIDE} to 1 is allowed")
    is_packed, kind = _tag(image, _COMPRESSION) not in (None, 1), ""
    if isinstance(image, TiffImageFile) and is_packed and image.mode in _DEEP and image.tag_v2.prefix == b"MM":
        kind = "compressed big-endian TIFF of signed values or floats"
    elif not is_packed and _tag(image, _PLANAR) == _SEPARATE and _tag(image, _BITS_PER_SAMPLE) == 16:
        kind = "uncompressed TIFF of 16-bit planes"
    elif image.format == "FITS" and image.mode != "L":
        kind = "FITS of more than 8 bits"
    if kind:
        raise InputError(f"Pillow decodes no {kind}; save it as PNG")


@contextmanager
def limited() -> Iterator[None]:
    """Raise Pillow's warning about decompression bombs as an error, and silence those about metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def readable(source: ImageSource) -> Iterator[None]:
    """Raise the errors of decoders, of many types, as an `InputError` that names the image."""
    try:
        yield
    except Exception as error:
        raise InputError(f"image '{source}' cannot be read: {error}; name image files") from error


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8; 1, upright, if it has none that can be read."""
    # Pillow would decode a whole PNG to search for EXIF data behind its pixels.
    if isinstance(image, PngImageFile) and not any(key in image.info for key in _EXIF_IN_PNG):
        return UPRIGHT
    with suppress(Exception), warnings.catch_warnings():  # damaged EXIF data warn, or raise many types
        warnings.simplefilter("ignore")
        value = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
        return value if value in range(1, 9) else UPRIGHT
    return UPRIGHT


@dataclass(frozen=True)
class Decoding:
    """How images become those of a network, before they are resized.

    Args:
        mode: PIL mode of the result.
        background: PIL's name or number of the colour behind transparent images, unless the mode has transparency.
        exif: Turn images as their EXIF orientation says.
    """

    mode: str = "RGB"
    background: str = "white"
    exif: bool = True

    @classmethod
    def of(cls, data_config: Mapping[str, Any]) -> Decoding:
        """The decoding that a `DataConfig` describes."""
        return cls(data_config["input_img_mode"], data_config["background"], data_config["exif"])

    def __call__(self, source: ImageSource) -> Image.Image:
        """The image in the mode of the network."""
        return self.read(source)[0]

    def read(self, source: ImageSource) -> tuple[Image.Image, Change]:
        """The image in the mode of the network, and what was done to it; decoders raise many types of errors."""
        if isinstance(source, str | Path):  # Pillow would map it, and mix up the pixels of a TIFF on its side
            with open(source, "rb") as file:
                return self.read(file)
        with limited():
            image = source if isinstance(source, Image.Image) else _identified(source)
            check_image(image)
            change = Change.FIRST_FRAME if _has_frames(image) else Change(0)
            before = orientation(image)
            image.load()
        is_tiff = isinstance(image, TiffImageFile)  # Pillow turns it as it loads it, and forgets that
        turned = before if is_tiff else orientation(image)
        if self.exif and turned != UPRIGHT:
            image, change = image if is_tiff else ImageOps.exif_transpose(image), change | Change.TURNED
        # Pillow's mode ignores the sign of 8 bits.
        if image.mode.startswith(_DEEP) or (image.mode == "L" and _tag(image, _SAMPLE_FORMAT) == _SIGNED):
            image, change = _to_8_bits(image), change | Change.SCALED
        if image.has_transparency_data and ImageMode.getmode(self.mode).bands[-1] not in ("A", "a"):
            image = image.convert("RGBA")
            if image.getchannel("A").getextrema() != (255, 255):
                ground = Image.new("RGBA", image.size, self.background)
                image, change = Image.alpha_composite(ground, image), change | Change.COMPOSITED
        if "LAB" in (image.mode, self.mode):  # Pillow converts it only from and to RGB
            image = image.convert("RGB")
        image = image.convert(self.mode)
        return image.transpose(BACK[turned]) if is_tiff and not self.exif and turned != UPRIGHT else image, change

    def described(self, counts: Mapping[Change, int]) -> str:
        """The changes of some images, in words; empty if there are none."""
        words = {
            Change.TURNED: "turned by EXIF orientation",
            Change.SCALED: "scaled to 8 bits",
            Change.COMPOSITED: f"composited on {self.background}",
            Change.FIRST_FRAME: "with several frames (only the first is used)",
        }
        return ", ".join(f"{counts[change]:,} {text}" for change, text in words.items() if counts[change])


def _identified(file: IO[bytes]) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError:  # Pillow's message would quote the open file
        raise UnidentifiedImageError("cannot identify image file") from None


def _has_frames(image: Image.Image) -> bool:
    """Whether an image has more frames than the first; further views in photographs do not count."""
    with suppress(Exception):  # an image whose file is closed
        return bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    return False


def _tag(image: Image.Image, number: int) -> Any:
    """The value of a tag of TIFF; None if there is none."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).view(np.int8) if image.mode == "L" else np.asarray(image)
    shades = _scaled(values, _white(image, values))
    # Pillow inverts only up to 8 bits.
    grey = Image.fromarray(255 - shades if _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO else shades)
    if (transparent := image.info.get("transparency")) is None:
        return grey
    grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _scaled(values: NDArray[Any], white: int) -> NDArray[np.uint8]:
    shades: NDArray[np.uint8] = np.rint(values.astype(np.float64).clip(0, white) * (255 / white)).astype(np.uint8)
    return shades


def _white(image: Image.Image, values: NDArray[Any]) -> int:
    """The value of white: by the depth of the file or, of 32 bits and floats, the usual one that suits the values."""
    bits = _tag(image, _BITS_PER_SAMPLE)
    if image.mode.startswith("I;16"):
        return int(2 ** (bits or 16) - 1)
    least, most, is_float = float(values.min()), float(values.max()), image.mode == "F"
    if bits in (8, 16):  # signed, or Pillow would have another mode
        whites: tuple[int, ...] = (2 ** (bits - 1) - 1,)
    elif image.format == "PPM" and not is_float:  # Pillow widens PGM files of more than 8 bits to 16
        whites = (65_535,)
    else:
        whites = _MOST_FLOAT if is_float else _MOST_WHOLE
    # Resizing with sharp filters exceeds the range of floats a little.
    below, above = (-most / 10, 2) if is_float else (0, 1)
    white = next((white for white in whites if below <= least and most <= above * white), 0)
    if not white:
        advice = "save values from 0 to 1" if is_float else "save values from 0 to 65,535 with 16 bits"
        raise InputError(f"its values are {least:g} to {most:g}, which are no shades of grey; {advice}")
    return white
