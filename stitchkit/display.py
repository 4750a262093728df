"""Text for people: log lines, counts with a unit, and aligned columns."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from stitchkit.errors import InputError, printable


class PrintableFormatter(logging.Formatter):
    """Formats log lines so that what they quote can neither hide nor forge anything."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return "\n".join(map(printable, super().format(record).split("\n")))


def command(*words: object) -> str:
    """A command as text that a shell takes as it is, whatever its words are; no path is taken for a flag."""
    texts = (f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words)
    return shlex.join(texts)


_UNITS = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}


def unit_of(value: float) -> tuple[str, float]:
    """The unit of a count as text, and its size."""
    return next(((unit, size) for unit, size in _UNITS.items() if value >= size), ("", 1.0))


def quantity(value: float) -> str:
    """A count with three digits and a unit: `4.61G`."""
    unit, size = unit_of(value)
    return f"{value / size:.3g}{unit}"


def plural(noun: str) -> str:
    """Several of a thing: `epochs`, `classes`, `stitches`."""
    return noun + ("es" if noun.endswith(("s", "tch")) else "s")


def counted(number: int, noun: str) -> str:
    """A number of things: `1 epoch`, `2 classes`, `1,281 images`."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def count(text: str) -> float:
    """Read a number with a unit, such as `5G`, `1.3e9` or `30M`."""
    if re.fullmatch(r".*\d\s*ms\s*", text, re.IGNORECASE):
        raise InputError(f"'{text}' is a latency, not a count such as 5G; write milliseconds as 8ms")
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*([kKMGT]?)\s*", text)
    if not match:
        raise InputError(f"'{text}' is not a positive number, such as 5G, 300M, 12k or 1.3e9")
    return float(match[1]) * _UNITS[match[2].replace("K", "k")]


def listed(names: Sequence[str], *, most: int = 5) -> str:
    """The first few names of many, quoted if they contain line ends or escapes, which could forge a line."""
    shown = [name if name.isprintable() else repr(name) for name in names[:most]]
    return ", ".join([*shown, "..."] if len(names) > most else shown)


def aligned(lines: Sequence[Sequence[str]], *, left: Collection[int]) -> str:
    """Text in columns, flush left for the indices in `left`, otherwise flush right."""
    columns = []
    for index, cells in enumerate(zip(*lines, strict=True)):
        pad, width = str.ljust if index in left else str.rjust, max(map(len, cells))
        columns.append([pad(cell, width) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))
