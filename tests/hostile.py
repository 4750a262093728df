"""Files that would do something when an unsafe reader opens them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


class Hostile:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


def hostile_yaml(path: Path) -> str:
    """YAML that makes a folder in a loader that builds Python objects."""
    return f"!!python/object/apply:os.mkdir ['{path}']\n"
