"""Pages from the templates in `page/`, where a name in double braces stands for its content."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from stitchkit.files import write_text

_PLACE = re.compile(r"\{\{([\w.]+)\}\}")


def read_page(name: str) -> str:
    """The text of a file in `page/`."""
    return (resources.files("stitchkit.ship") / "page" / name).read_text(encoding="utf-8")


def write_page(path: Path, template: str, parts: Mapping[str, str]) -> None:
    """Write a page from a template; a name that is not among the `parts` is that of a file beside it."""

    def content(match: re.Match[str]) -> str:
        return parts[match[1]] if match[1] in parts else read_page(match[1])

    # In one pass, so that {{...}} inside a part, such as a ledger's name, is not replaced.
    write_text(path, _PLACE.sub(content, read_page(template)))
