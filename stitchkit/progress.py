"""Progress of long work on the primary rank: a bar on a terminal, otherwise a line of the log now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, MutableMapping
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from stitchkit.distributed import World

_logger = logging.getLogger(__name__)

_SECONDS = 60.0
"""Time between two lines."""
_LINE = "{desc}  {n_fmt}/{total_fmt} {unit}{pace}"


class _Log:
    """The file that tqdm writes lines to if there is no terminal."""

    def write(self, text: str) -> None:
        """Log what tqdm draws."""
        if words := text.strip():
            _logger.info("%s", words)

    def flush(self) -> None:
        """Do nothing, since the log flushes itself."""


class Progress(tqdm):  # type: ignore[misc]  # tqdm is untyped
    """Progress that knows its pace without the first item, which waits for loaders and for a resumed run to catch up.

    `images` is the mean number of images in an item, 0 if unknown.
    """

    images = 0.0
    _paced = 0
    _began = 0.0

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(super().__iter__()):
            self._paced = number
            if number == 1:
                self._began = time.perf_counter()
            yield item

    def pace(self, left: int, of: str = "") -> str:
        """The end of a line: the speed, and the time left for items `of` something; empty during the first item."""
        if not self._paced:
            return ""
        seconds = max(time.perf_counter() - self._began, 1e-6) / self._paced
        speed = f"  {self.images / seconds:.0f} images/s" if self.images else ""
        return speed if left < 0 else f"{speed}  {timedelta(seconds=round(left * seconds))} left{of}"

    @property
    def format_dict(self) -> MutableMapping[str, Any]:
        """tqdm's figures for a line, and the pace."""
        known: MutableMapping[str, Any] = super().format_dict
        known["pace"] = self.pace((known["total"] or 0) - known["n"])
        return known


def progress(
    items: Iterable[Any], world: World, what: str, *, unit: str, total: int | None = None, images: float = 0
) -> Progress:
    """Progress through `items`, named `what`; they have a length, or a `total`, and a mean number of `images` each."""
    options: dict[str, Any] = {"desc": what, "unit": unit, "total": total, "leave": False}
    if not sys.stderr.isatty():
        often = {"mininterval": _SECONDS, "maxinterval": _SECONDS, "delay": _SECONDS, "miniters": 1}
        options |= {"file": _Log(), "bar_format": _LINE, **often}
    bar = Progress(items, disable=not world.is_primary, **options)
    bar.images = images
    return bar
