"""Progress of long work on the primary rank: a bar on a terminal, otherwise a line of the log now and then."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, MutableMapping
from typing import Any, TypeVar

from tqdm import tqdm

from stitchkit.distributed import World

_logger = logging.getLogger(__name__)

_SECONDS = 60.0
"""Time between two lines."""
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {images_fmt}{elapsed}, {remaining} left"

Item = TypeVar("Item")


class _Log:
    """The file that tqdm writes lines to if there is no terminal."""

    def write(self, text: str) -> None:
        """Log what tqdm draws."""
        if words := text.strip():
            _logger.info("%s", words)

    def flush(self) -> None:
        """Do nothing, since the log flushes itself."""


class _Bar(tqdm):  # type: ignore[misc]  # tqdm is untyped
    """A bar that also knows the images per second; `images` is the mean number of them in an item, 0 if unknown."""

    images = 0.0

    @property
    def format_dict(self) -> MutableMapping[str, Any]:
        known: MutableMapping[str, Any] = super().format_dict
        rate = self.images * self.n / known["elapsed"] if known["elapsed"] else 0
        known["images_fmt"] = f"{rate:.0f} images/s, " if rate else ""
        return known


def progress(
    items: Iterable[Item], world: World, what: str, *, unit: str, total: int | None = None, images: float = 0
) -> tqdm[Item]:
    """Progress through `items`, named `what`; they have a length, or a `total`, and a mean number of `images` each."""
    options: dict[str, Any] = {"desc": what, "unit": unit, "total": total, "leave": False}
    if not sys.stderr.isatty():
        often = {"mininterval": _SECONDS, "maxinterval": _SECONDS, "delay": _SECONDS, "miniters": 1, "smoothing": 0}
        options |= {"file": _Log(), "bar_format": _LINE, **often}
    bar = _Bar(items, disable=not world.is_primary, **options)
    bar.images = images
    return bar
