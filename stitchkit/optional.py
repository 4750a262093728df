"""Packages that only some commands need: imported on use, and named if they are missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from stitchkit.errors import InputError


def optional(module: str, extra: str, use: str) -> ModuleType:
    """A module of a package that one of our extras installs.

    Raises:
        InputError: If it is not installed; the message names the `use` that needs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise InputError(f"{use} needs {name}, which is not installed; pip install 'stitchkit[{extra}]'") from error
