"""The ledger, `stitches_res.txt`: one JSON object a line, one line a stitch, append-only."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stitchkit.errors import InputError
from stitchkit.files import opened, refuse_link, write_text
from stitchkit.measure.profile import Cost
from stitchkit.routes import StitchSpace

Row = dict[str, Any]

_NUMBERS = ("flops", "params", "activations", "latency_ms", "images_per_s", "acc1", "acc5", "loss")
_TYPES: dict[str, Any] = {"stitch": str, **dict.fromkeys(_NUMBERS, int | float)}


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a ledger, ours or a published one, in the order they stand there.

    A last line that a killed run left unfinished is ignored.

    Raises:
        InputError: If the file is missing or empty, or a line is no row with a `cfg_id` of its own and finite figures.
    """
    path = Path(path)
    try:
        lines = path.read_text().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"ledger '{path}' cannot be read: {error}") from error
    rows: list[Row] = []
    places: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise InputError(f"ledger '{path}', line {number} is not JSON: {line.strip()[:80]!r}") from error
        if not isinstance(row, dict) or type(row.get("cfg_id")) is not int or row["cfg_id"] < 0:
            raise InputError(f"ledger '{path}', line {number} has no number of a stitch as 'cfg_id': {line[:80]!r}")
        if fault := _fault(row):
            raise InputError(f"ledger '{path}', line {number} has {fault}")
        if (first := places.setdefault(row["cfg_id"], number)) != number:
            raise InputError(
                f"ledger '{path}', duplicate cfg_id {row['cfg_id']} in lines {first} and {number}; keep one"
            )
        rows.append(row)
    return rows


def _fault(row: Row) -> str:
    """What of a row's figures cannot be used; a loss alone may be NaN, as nothing is chosen by it."""
    for key, kind in _TYPES.items():
        if key in row and (not isinstance(row[key], kind) or isinstance(row[key], bool)):
            return f"{key} {row[key]!r}, not of type {kind}"
        if key in row and key not in ("stitch", "loss") and not _is_finite(row[key]):
            return f"{key} {row[key]}, which is not finite; take the line out and evaluate the stitch again"
    return ""


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def write_rows(path: str | Path, rows: list[Row]) -> None:
    """Write a whole ledger at once; an existing file is replaced only when the new one is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def strict_json(content: object) -> str:
    """JSON for other programs, which refuse NaN: a loss may be, and is null there."""
    return json.dumps(json.loads(json.dumps(content), parse_constant=lambda _: None), allow_nan=False)


def cost_row(space: StitchSpace, cfg_id: int, cost: Cost) -> Row:
    """The first entries of a stitch's row: what it is and what it costs."""
    return {"cfg_id": cfg_id, "stitch": space[cfg_id].name, **cost._asdict()}


class Ledger:
    """A ledger that a run appends to and that a rerun resumes.

    Args:
        path: The file; it need not exist yet.
        space: The stitches it is about.
        cost: FLOPs and parameters of a `cfg_id`.

    Raises:
        InputError: If the file holds rows of another configuration, or is a symbolic link; it is left as it is.
    """

    def __init__(self, path: str | Path, space: StitchSpace, cost: Callable[[int], Cost]):
        self.path = Path(path)
        refuse_link(self.path)  # before hours of evaluation whose rows it would not take
        self._space = space
        self._cost = cost
        self.rows: list[Row] = read_rows(self.path) if self.path.exists() else []
        for row in self.rows:
            self._check(row)

    @property
    def missing(self) -> list[int]:
        """The `cfg_id`s that have no row yet."""
        done = {row["cfg_id"] for row in self.rows}
        return [cfg_id for cfg_id in range(len(self._space)) if cfg_id not in done]

    def append(self, cfg_id: int, figures: Mapping[str, Any]) -> Row:
        """Add the row of a stitch and see it safely on the disk.

        Args:
            cfg_id: The stitch.
            figures: What was measured, besides its costs.
        """
        row = cost_row(self._space, cfg_id, self._cost(cfg_id)) | dict(figures)
        self._finish_last_line()
        with opened(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)
        return row

    def rewrite(self) -> None:
        """Put the rows, which have new figures, in the place of those in the file: all of them or none."""
        write_rows(self.path, self.rows)

    def _finish_last_line(self) -> None:
        """Bring the file to its last good row: a killed run may have left a part of one, or a row without its end."""
        content = self.path.read_bytes() if self.path.exists() else b""
        if not content or content.endswith(b"\n"):
            return
        good = len(read_rows(self.path)) == len(content.splitlines())
        with opened(self.path, "r+b") as file:
            if good:
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
            else:
                file.truncate(content.rfind(b"\n") + 1)

    def _check(self, row: Row) -> None:
        if found := difference(row, self._space, self._cost):
            raise InputError(
                f"result file '{self.path}' is from another configuration: {found}; "
                "choose another --experiment or move the file away"
            )


def difference(row: Row, space: StitchSpace, cost: Callable[[int], Cost]) -> str:
    """What of a row cannot be of these stitches; empty where all can.

    Args:
        row: A row of a ledger, ours or a published one.
        space: The stitches.
        cost: FLOPs and parameters of a `cfg_id`.
    """
    cfg_id = row["cfg_id"]
    if not 0 <= cfg_id < len(space):
        return f"it has cfg_id {cfg_id}, this space has 0 to {len(space) - 1}"
    expected = cost_row(space, cfg_id, cost(cfg_id))
    # Published rows have no 'stitch', and their 'params' leave some parameters out.
    wrong = [key for key in ("stitch", "flops") if key in row and row[key] != expected[key]]
    return f"its cfg_id {cfg_id} has {wrong[0]} {row[wrong[0]]}, here it is {expected[wrong[0]]}" if wrong else ""
