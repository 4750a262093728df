"""Fields of a recipe that are also flags of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Flag:
    """The part of a setting that only argparse needs.

    pydantic keeps it with the field as its `json_schema_extra`, which is called with the field's JSON Schema.

    Args:
        aliases: Further spellings of the flag.
        command_only: Whether only the flag can switch the setting on.
        options: Further arguments of argparse.
    """

    aliases: tuple[str, ...]
    command_only: bool
    options: dict[str, Any]

    def __call__(self, schema: JsonDict) -> None:
        """Leave the JSON Schema as it is."""


def flag_in(field: FieldInfo) -> Flag:
    """The `Flag` that `flag` stored in a field."""
    found = field.json_schema_extra
    assert isinstance(found, Flag)
    return found


def flag(
    default: Any,
    help: str,
    *aliases: str,
    ge: float | None = None,
    le: float | None = None,
    length: int | None = None,
    strict: bool | None = True,
    command_only: bool = False,
    **options: object,
) -> Any:  # as pydantic's own Field: it stands where a value of the field's type is expected
    """A field that is also a flag.

    Args:
        default: Its default; a bool makes a switch, a list a flag of several values.
        help: One line for `--help`.
        aliases: Further spellings, such as `-b`.
        ge: Least value.
        le: Greatest value.
        length: Number of values of a list.
        strict: Do not accept text as a number; None for a choice of values, as pydantic requires.
        command_only: Files cannot switch it on, because whoever wrote the file would decide what is downloaded.
        options: Further arguments of argparse, such as `metavar`.
    """
    strict = None if isinstance(default, str) else strict  # text needs no strictness: nothing else converts to it
    return Field(
        default=default, description=help, ge=ge, le=le, min_length=length, max_length=length, strict=strict,
        json_schema_extra=Flag(aliases, command_only, options),
    )  # fmt: skip
