"""Packages that only some commands need: imported on use, and named if they are missing."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from stitchkit.errors import InputError


def optional(module: str, extra: str, use: str) -> ModuleType:
    """A module of a package that one of our extras installs; a message names the `use` that needs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise _missing([module.partition(".")[0]], extra, use) from error


def check_installed(packages: Iterable[str], extra: str, use: str) -> None:
    """See that packages are there, before time is spent; they are not imported. Those of no extra have `""`."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise _missing(missing, extra, use)


def _missing(packages: list[str], extra: str, use: str) -> InputError:
    verb, what = "is" if len(packages) == 1 else "are", f"'stitchkit[{extra}]'" if extra else " ".join(packages)
    return InputError(f"{use} needs {', '.join(packages)}, which {verb} not installed; pip install {what}")
