"""Paths of this machine, and what is none: libraries that read data take URLs, and commands, for paths too."""

from __future__ import annotations

import re
import unicodedata

from stitchkit.errors import InputError

# Parsers of URLs pass over white space before the scheme.
_SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def local_fault(value: str) -> str | None:
    """The reason why some reader may take a value for a URL or a command; None for a path on this machine.

    webdataset runs what follows `pipe:` in a shell; others fetch from schemes of their own.

    Args:
        value: A path, as a person or a file gave it.
    """
    if _SCHEME.match(value):
        return "begins with a scheme; give a path on this machine, with ./ before a name that has a colon in it"
    if any(unicodedata.category(letter) == "Cc" for letter in value):  # which parsers of URLs leave out
        return "holds control characters; give a path on this machine"
    return None


def dataset_fault(value: str) -> str | None:
    """`local_fault` of the name of a data set, with what follows its library, as in `wds/x`.

    Names of tfds are not places; they may have a version after a colon.

    Args:
        value: timm's string, or a name or folder.
    """
    library, _, rest = value.partition("/")
    is_place = library.lower() != "tfds" or "://" in rest
    return local_fault(value) or (local_fault(rest) if is_place else None)


def check_local(value: str, name: str) -> None:
    """Refuse a value that is not a path on this machine.

    Args:
        value: A path, as a person or a file gave it.
        name: What it is called in a message.

    Raises:
        InputError: If `local_fault` finds one.
    """
    _refuse(value, name, local_fault(value))


def check_dataset(value: str, name: str) -> None:
    """Refuse a data set's name that is not one and not a path on this machine.

    Args:
        value: timm's string, or a name or folder.
        name: What it is called in a message.

    Raises:
        InputError: If `dataset_fault` finds one.
    """
    _refuse(value, name, dataset_fault(value))


def _refuse(value: str, name: str, fault: str | None) -> None:
    if fault:
        raise InputError(f"{name} is {value!r}, which {fault}")
