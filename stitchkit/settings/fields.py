"""Fields of settings: numbers with limits, colours, and a setting with its help.

Every number has two limits. What a reader multiplies, such as processes, sides of images or blocks, ends where no
machine follows; everything else ends where arithmetic stays exact. They are strict: neither text nor true is a number.
"""

from __future__ import annotations

from typing import Annotated, Any

from PIL import ImageColor
from pydantic import Field

MOST_CLASSES = 100_000
MOST_SIDE = 8192
MOST_CHANNELS = 1024
MOST_WIDTH = 65_536
# With a higher rank in a stranger's file, updates could take any amount of memory.
MOST_RANK = 1024

Natural = Annotated[int, Field(strict=True, ge=0, le=10**9)]
Count = Annotated[int, Field(strict=True, ge=1, le=10**9)]
Amount = Annotated[int, Field(strict=True, ge=1, le=10**15)]
"""A number of images or FLOPs; floats hold it exactly."""
Seed = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
"""NumPy takes seeds below 2^32, and ranks and processes add their numbers to it."""
Workers = Annotated[int, Field(strict=True, ge=0, le=1024)]
"""Loader processes; `workers_for` compares them with the cores of the machine."""
Batch = Annotated[int, Field(strict=True, ge=1, le=2**20)]
"""Images that are in memory at a time."""
Side = Annotated[int, Field(strict=True, ge=1, le=MOST_SIDE)]
"""Pixels."""
Channels = Annotated[int, Field(strict=True, ge=1, le=MOST_CHANNELS)]
"""Channels of an image."""
Width = Annotated[int, Field(strict=True, ge=1, le=MOST_WIDTH)]
"""Channels of a layer."""
Classes = Annotated[int, Field(strict=True, ge=0, le=MOST_CLASSES)]
Copies = Annotated[int, Field(strict=True, ge=0, le=1000)]
Times = Annotated[int, Field(strict=True, ge=1, le=1000)]
"""How often a step does something."""

Whole = Annotated[int, Field(strict=True, ge=-(10**9), le=10**9)]
Number = Annotated[float, Field(strict=True, ge=-1e9, le=1e9)]
NonNegative = Annotated[float, Field(strict=True, ge=0, le=1e9)]
AtLeastBillionth = Annotated[float, Field(strict=True, ge=1e-9, le=1e9)]
AtLeastMillionth = Annotated[float, Field(strict=True, ge=1e-6, le=1e9)]
AtLeastThousandth = Annotated[float, Field(strict=True, ge=1e-3, le=1e9)]
Rate = Annotated[float, Field(strict=True, ge=0, le=1e38)]
"""A learning rate; one that is too high ends the run with the message of a loss that is not finite."""
Factor = Annotated[float, Field(strict=True, ge=1e-3, le=1000)]
"""A factor that is applied again and again, or to the size of something."""
Repeats = Annotated[float, Field(strict=True, ge=0, le=1000)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Area = Annotated[float, Field(strict=True, ge=1e-3, le=1)]
AtMost99Percent = Annotated[float, Field(strict=True, ge=0, le=0.99)]


COLOUR_MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "HSV", "LAB", "YCbCr")
"""The PIL modes of images for networks: every image converts to them, can be resized, and has values from 0 to 255."""


def is_colour(value: object) -> bool:
    """Whether PIL knows an opaque colour by this name or number."""
    try:
        return isinstance(value, str) and len(ImageColor.getrgb(value)) == len("RGB")
    except ValueError:
        return False


def flag(default: Any, help: str, *, length: int | None = None, strict: bool | None = True) -> Any:
    """A setting with its line for `--help`, and the number of its values if it is a list.

    It is typed as pydantic's own `Field`, because it stands where a value of the field's type is expected.
    """
    strict = None if isinstance(default, str) else strict  # text needs no strictness: nothing else converts to it
    return Field(default=default, description=help, min_length=length, max_length=length, strict=strict)


def entry(default: Any, about: str) -> Any:
    """An entry of a file with its default, `...` if it must be there, and its description in the JSON Schema."""
    return Field(default=default, description=about)
