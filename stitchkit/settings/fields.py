"""Fields of a recipe: numbers with limits, colours, and a setting with its help."""

from __future__ import annotations

from typing import Annotated, Any

from PIL import ImageColor
from pydantic import Field

NonNegative = Annotated[float, Field(strict=True, ge=0)]
Positive = Annotated[float, Field(strict=True, gt=0)]
AtLeastThousandth = Annotated[float, Field(strict=True, ge=1e-3)]
AtLeastMillionth = Annotated[float, Field(strict=True, ge=1e-6)]
Area = Annotated[float, Field(strict=True, ge=1e-3, le=1)]
AtMost99Percent = Annotated[float, Field(strict=True, ge=0, le=0.99)]


def is_colour(value: object) -> bool:
    """Whether PIL knows a colour by this name or number."""
    try:
        return isinstance(value, str) and bool(ImageColor.getrgb(value))
    except ValueError:
        return False


def flag(default: Any, help: str, *, length: int | None = None, strict: bool | None = True) -> Any:
    """A setting with its line for `--help`, and the number of its values if it is a list.

    It is typed as pydantic's own `Field`, because it stands where a value of the field's type is expected.
    """
    strict = None if isinstance(default, str) else strict  # text needs no strictness: nothing else converts to it
    return Field(default=default, description=help, min_length=length, max_length=length, strict=strict)
