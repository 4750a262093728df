"""Paths of this machine, as opposed to the URLs and commands that libraries also accept as paths."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from stitchkit.errors import InputError

# Parsers of URLs skip white space before the scheme.
_SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def local_fault(value: str) -> str | None:
    """The reason why a reader may take a value for a URL or a command; None for a path on this machine.

    webdataset runs the text after `pipe:` in a shell; other readers download by their own schemes.
    """
    if _SCHEME.match(value):
        return "begins with a scheme; give a path on this machine, with ./ before a name that has a colon in it"
    if any(unicodedata.category(letter) == "Cc" for letter in value):  # hide a scheme: URL parsers drop them
        return "contains control characters; give a path on this machine"
    return None


def dataset_fault(value: str) -> str | None:
    """`local_fault` of a data set's name, and of the part after its library, as in `wds/x`."""
    # Names of tfds are not places, and may have a version after a colon.
    library, _, rest = value.partition("/")
    is_place = library.lower() != "tfds" or "://" in rest
    return local_fault(value) or (local_fault(rest) if is_place else None)


def check_local(value: str, name: str, fault: Callable[[str], str | None] = local_fault) -> None:
    """Refuse a value, called `name` in the message, that is not a path on this machine."""
    if found := fault(value):
        raise InputError(f"{name} is {value!r}, which {found}")


def check_file(path: str | Path, name: str) -> None:
    """Refuse a value, called `name` in the message, that is not a file on this machine."""
    check_local(str(path), name)
    if not Path(path).is_file():
        found = "is not a file" if Path(path).exists() else "does not exist"
        where = "" if Path(path).is_absolute() else f" in '{Path.cwd()}'"
        raise InputError(f"{name} '{path}' {found}{where}; check the path")


def check_dataset(value: str, name: str) -> None:
    """Refuse a data set, called `name` in the message, that is neither a plain name nor a path on this machine."""
    check_local(value, name, dataset_fault)
