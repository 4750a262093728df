"""Paths of this machine, as opposed to the URLs and commands that libraries also accept as paths."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from stitchkit.errors import InputError

# Parsers of URLs skip white space before the scheme.
_SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)


_FILES = (
    *("stitch_config", "pretrained_path", "initial_checkpoint", "teacher_path", "resume", "class_map", "checkpoint"),
    *("ckp_path", "load_from", "resume_from", "ft_configs", "job"),
)
_FOLDERS = ("data", "data_dir", "data_path")
"""Settings that name something to read, in any of our files; a list of images without labels counts as a folder."""
_DATASETS = ("dataset", "datasets")
"""Those that name a folder if they have a slash; others are names such as `digits`."""
_Exists = Callable[[str], bool]
_folders_asked: dict[str, Path] = {}
"""By each path that a settings file names and that is not beside it, the folder of that file, for messages."""


def from_file(path: str, file: Path, exists: _Exists = os.path.exists) -> str:
    """A path that a settings file names, as from the working folder: beside the file if it exists there."""
    if path.startswith("~"):
        return os.path.expanduser(path)
    if not _is_relative(path):
        return path
    beside, working = os.path.normpath(os.path.join(os.path.realpath(file.parent), path)), os.getcwd()
    if not exists(beside):
        _folders_asked[path] = file.parent
        return path
    return os.path.relpath(beside, working) if Path(beside).is_relative_to(working) else beside


def for_file(path: str, file: Path, exists: _Exists = os.path.exists) -> str:
    """A path for a settings file, relative to it, so that it means the same from every folder."""
    # Only in the spelling that `from_file` gives back, since a resumed job compares the two.
    if not _is_relative(path) or os.path.normpath(path) != path or not exists(path):
        return path
    return os.path.relpath(os.path.join(os.getcwd(), path), os.path.realpath(file.parent))


def paths_from_file(settings: Mapping[Any, Any], file: Path) -> dict[Any, Any]:
    """One level of the settings in a file, with its paths as `from_file` gives them."""
    return {key: _changed(key, value, partial(from_file, file=file)) for key, value in settings.items()}


def paths_for_file(settings: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Settings of all levels for a file, with their paths as `for_file` gives them."""

    def inner(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [inner(item) for item in value]
        return paths_for_file(value, file) if isinstance(value, Mapping) else value

    return {key: inner(_changed(key, value, partial(for_file, file=file))) for key, value in settings.items()}


def _changed(key: str, value: Any, change: Callable[..., str]) -> Any:
    """A setting with its paths changed; `change` also takes the test of their existence."""
    if isinstance(value, Mapping) and key in _FILES:  # a file for each piece of a network
        return {piece: _changed(key, item, change) for piece, item in value.items()}
    if isinstance(value, list):
        return [_changed(key, item, change) for item in value]
    if not isinstance(value, str):
        return value
    if key in _FILES:
        return change(value, exists=os.path.isfile)
    return change(value) if key in _FOLDERS or (key in _DATASETS and "/" in value) else value


def _is_relative(path: str) -> bool:
    return bool(path) and not os.path.isabs(path) and local_fault(path) is None


def asked(path: str | Path) -> str:
    """The folders searched for a relative path, for a message: ` in 'here'`; nothing for an absolute path."""
    if os.path.isabs(path):
        return ""
    folder = _folders_asked.get(str(path))
    return f" in '{Path.cwd()}'" + (f" or in '{folder}', beside the settings" if folder else "")


def local_fault(value: str) -> str | None:
    """The reason why a reader may take a value for a URL or a command; None for a path on this machine."""
    if _SCHEME.match(value):  # webdataset runs the text after `pipe:`; other readers download by their own schemes
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
    if reason := fault(value):
        raise InputError(f"{name} is {value!r}, which {reason}")


def check_file(path: str | Path, name: str) -> None:
    """Refuse a value, called `name` in the message, that is not a file on this machine."""
    check_local(str(path), name)
    if not Path(path).is_file():
        reason = "is not a file" if Path(path).exists() else "does not exist"
        raise InputError(f"{name} '{path}' {reason}{asked(path)}; check the path")


def check_dataset(value: str, name: str) -> None:
    """Refuse a data set, called `name` in the message, that is neither a plain name nor a path on this machine."""
    check_local(value, name, dataset_fault)
