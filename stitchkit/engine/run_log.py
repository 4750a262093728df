"""The log of a run: `log.txt` in its folder, with the time of each line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stitchkit.display import PrintableFormatter
from stitchkit.distributed import World
from stitchkit.errors import InputError
from stitchkit.files import opened

LOG = "log.txt"
_OURS = "stitchkit"


class _RunLog(logging.Handler):
    """Keeps lines in memory until the run begins to write, since a run that is refused must leave its folder alone."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(PrintableFormatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._early: list[logging.LogRecord] = []
        self._file: IO[str] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or keep it."""
        if self._file is None:
            self._early.append(record)
            return
        try:
            self._file.write(f"{self.format(record)}\n")
            self._file.flush()
        except OSError:  # a full disk ends the run where it cannot save its weights, not here
            self.setLevel(logging.CRITICAL + 1)

    def begin(self, path: Path) -> None:
        """Append to a file, with the lines kept so far; a log that has begun stays in its file."""
        if self._file is not None:
            return
        self._file, early = opened(path, "a"), self._early
        self._early = []
        for record in early:
            self.emit(record)

    def close(self) -> None:
        """Close the file."""
        super().close()
        if self._file is not None:
            self._file.close()


@contextmanager
def collected(world: World) -> Iterator[None]:
    """Collect the log of a run on its primary rank, for `begin_log`; an error that ends the run is its last line.

    Our lines are collected whatever the level of the logging, whose handlers get no more of them than before.
    """
    if not world.is_primary:
        yield
        return
    handler, root, ours = _RunLog(), logging.getLogger(), logging.getLogger(_OURS)
    before, level, others = ours.level, ours.getEffectiveLevel(), [*root.handlers, *ours.handlers]

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.levelno >= level or record.name.partition(".")[0] != _OURS

    for other in others:
        other.addFilter(is_wanted)
    root.addHandler(handler)
    ours.setLevel(min(level, logging.INFO))
    try:
        yield
    except BaseException as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        handler.handle(root.makeRecord(__name__, logging.ERROR, __file__, 0, f"stopped: {reason}", (), None))
        raise
    finally:
        ours.setLevel(before)
        root.removeHandler(handler)
        for other in others:
            other.removeFilter(is_wanted)
        handler.close()


def begin_log(folder: Path) -> None:
    """Write the log of this run, if one is collected, into a folder from now on, after that of earlier starts."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _RunLog):
            handler.begin(folder / LOG)
