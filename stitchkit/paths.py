"""Paths of this machine, and what is none: libraries that read data take URLs, and commands, for paths too."""

from __future__ import annotations

import re
import unicodedata

from stitchkit.errors import InputError

# Parsers of URLs pass over white space before the scheme.
_SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def check_local(value: str, name: str) -> None:
    """Refuse a value that some reader may take for a URL or a command.

    webdataset runs what follows `pipe:` in a shell; others fetch from schemes of their own.

    Args:
        value: A path, as a person or a file gave it.
        name: What it is called in a message.

    Raises:
        InputError: If it begins with a scheme, or holds control characters, which parsers of URLs leave out.
    """
    if _SCHEME.match(value):
        raise InputError(
            f"{name} is {value!r}, which begins with a scheme; give a path on this machine, with ./ before a name that "
            "has a colon in it"
        )
    if any(unicodedata.category(letter) == "Cc" for letter in value):
        raise InputError(f"{name} is {value!r}, which holds control characters; give a path on this machine")


def check_dataset(value: str, name: str) -> None:
    """`check_local` for the name of a data set, with what stands behind its library, as in `wds/x`.

    Names of tfds are no places; they may have a version behind a colon.

    Args:
        value: timm's string, or a name or folder.
        name: What it is called in a message.

    Raises:
        InputError: As `check_local`.
    """
    check_local(value, name)
    library, _, rest = value.partition("/")
    if library.lower() != "tfds" or "://" in rest:
        check_local(rest, name)
