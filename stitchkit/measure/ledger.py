"""The ledger: append-only, one JSON object per line and one line per stitch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stitchkit.display import quantity
from stitchkit.errors import InputError
from stitchkit.files import opened, refuse_link, sync, write_text
from stitchkit.routes import StitchSpace
from stitchkit.settings.files import json_lines

if TYPE_CHECKING:
    from stitchkit.measure.profile import Cost  # slow to import, and a ledger is read without it

Row = dict[str, Any]

LEDGER = "stitches_res.txt"
"""Its file in the folder of a run."""
COSTS = {"flops": "flops", "params": "params", "latency": "latency_ms"}
"""What accuracy is weighed against, and its figure in a row."""
WITH_INTERVALS = ("acc1", "miou", "delta1", "agree")
"""Figures that have a 95 % interval in a row, between those named `<figure>_low` and `<figure>_high`."""
_NUMBERS = (
    *("flops", "params", "activations", "acc1", "acc5", "balanced_acc1", "loss", "images", "latency_ms"),
    *("miou", "pixel_acc", "delta1", "abs_rel", "rmse"),
    *(f"{figure}_{end}" for figure in WITH_INTERVALS for end in ("low", "high")),
    *("p_front", "images_per_s"),
    *("latency_spread_percent", "latency_batch_size", "latency_threads"),
    *("recalibrate_bn", "bn_loss", "bn_agreement"),
    *("agree", "agree_sure", "kl", "sure_images"),
    *("knn", "linear", "cosine", "cka", "self_knn", "self_linear", "self_cosine", "self_cka"),
)
_MAY_BE_NEGATIVE = ("loss", "kl", "cosine", "self_cosine", "bn_agreement")
_AGAIN = "remove the line and evaluate the stitch again"
_OTHER = f"give a stitches_res.txt, or {_AGAIN}"
_WORDS = {"flops": "FLOPs", "params": "parameters", "latency_ms": "ms", "acc1": "% top-1"}
_TEXTS = ("stitch", "latency_device", "latency_precision", "bn")
_TYPES: dict[str, tuple[str, set[type]]] = {
    **dict.fromkeys(_TEXTS, ("text", {str})),
    **dict.fromkeys(_NUMBERS, ("a number", {int, float})),
    "latency_reliable": ("true or false", {bool}),
    "tied_with": ("a list of cfg_ids", {list}),
}


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a ledger, ours or a published one, in the order of its lines."""
    path = Path(path)
    if path.is_dir() or not path.exists():
        reason = "is a folder; give the stitches_res.txt in it" if path.is_dir() else "does not exist; check the path"
        raise InputError(f"ledger '{path}' {reason}")
    try:
        lines = json_lines(path, f"ledger '{path}'", _OTHER)
    except OSError as error:
        raise InputError(f"ledger '{path}' cannot be read: {error.strerror}; give a stitches_res.txt") from error
    rows: list[Row] = []
    places: dict[int, int] = {}
    for number, line, row in lines:
        if not isinstance(row, dict) or type(row.get("cfg_id")) is not int or row["cfg_id"] < 0:
            fault = f"has no 'cfg_id', a number from 0: {line.strip()[:80]!r}; {_OTHER}"
            raise InputError(f"ledger '{path}', line {number} {fault}")
        if fault := fault_of(row):
            raise InputError(f"ledger '{path}', line {number} has {fault}; {_AGAIN}")
        if (first := places.setdefault(row["cfg_id"], number)) != number:
            duplicate = f"duplicate cfg_id {row['cfg_id']} (line {first})"
            raise InputError(f"ledger '{path}', line {number}: {duplicate}; keep one of them")
        rows.append(row)
    return rows


def fault_of(row: Row) -> str:
    """The first invalid figure of a row; only a loss may be NaN or infinite, because no choice depends on it."""
    for key, (kind, types) in _TYPES.items():
        if key in row and type(row[key]) not in types:  # not isinstance: JSON's true would be an int
            return f"{key} {row[key]!r}, not {kind}"
        # A whole number is never infinite, but JSON has some that are too large for a float.
        if key in row and float in types and (key, type(row[key])) != ("loss", float) and not _is_finite(row[key]):
            return f"{key} {row[key]}, not finite"
        if key in row and float in types and key not in _MAY_BE_NEGATIVE and row[key] < 0:
            return f"{key} {row[key]}, a negative number"
    if not all(type(cfg_id) is int and cfg_id >= 0 for cfg_id in row.get("tied_with", [])):
        return f"tied_with {row['tied_with']!r}, not a list of cfg_ids"
    if row.get("part"):
        return "part true: --eval-images of an earlier version measured it on a part of the images"
    for figure in WITH_INTERVALS:
        if (f"{figure}_low" in row) != (f"{figure}_high" in row):
            return f"one end of the interval of {figure} without the other"
    return ""


def check_figures(rows: Sequence[Row], keys: Iterable[str], advice: Mapping[str, str] | None = None) -> None:
    """Refuse rows without the figures for comparing stitches; `advice` says what to do if one is missing."""
    if not rows:
        raise InputError("the ledger has no rows; run an evaluation with --eval first")
    for key in keys:
        for row in rows:
            where = f"the row of cfg_id {row['cfg_id']}"
            if key not in row:
                raise InputError(f"{where} has no '{key}'; {(advice or {}).get(key, 'use a ledger made by --eval')}")
            if not _is_finite(row[key]):
                raise InputError(f"{where} has {key} {row[key]}, not a finite number; remove the row")


def _is_finite(value: float) -> bool:
    return abs(value) <= sys.float_info.max  # unlike math.isfinite, this takes integers beyond the range of floats


def nouns_of(rows: Iterable[Row]) -> tuple[str, str]:
    """What the rows are called, and those that are uncut; only composed networks and their parents have a score."""
    return ("network", "parent") if any("score" in row for row in rows) else ("stitch", "anchor")


def figure_text(key: str, value: float) -> str:
    """A figure of a row in words: `4.61G FLOPs`."""
    text = quantity(value) if key in ("flops", "params") else f"{value:.4g}"
    return f"{text} {_WORDS[key]}"


def write_rows(path: str | Path, rows: list[Row]) -> None:
    """Write a whole ledger, which replaces an existing one only when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def strict_json(content: object) -> str:
    """JSON for other programs, which reject NaN: a loss that is NaN becomes null."""
    return json.dumps(json.loads(json.dumps(content), parse_constant=lambda _: None), allow_nan=False)


def cost_row(space: StitchSpace, cfg_id: int, cost: Cost) -> Row:
    """The first entries of a stitch's row: its name and costs."""
    return {"cfg_id": cfg_id, "stitch": space[cfg_id].name, **cost._asdict()}


class Ledger:
    """A ledger that a run appends to and that a rerun resumes.

    Raises:
        InputError: If the file has rows of another configuration, or is a symbolic link; it is not changed.
    """

    def __init__(self, path: str | Path, space: StitchSpace, cost: Callable[[int], Cost]):
        self.path = Path(path)
        refuse_link(self.path)  # now, not after hours of evaluation that could not be recorded
        self._space = space
        self.cost = cost
        self.rows: list[Row] = read_rows(self.path) if self.path.exists() else []
        for row in self.rows:
            if contradiction := difference(row, space, cost):
                fault = f"'{self.path}' is from another configuration: {contradiction}"
                raise InputError(f"result file {fault}; choose another --experiment or move the file away")

    @property
    def missing(self) -> list[int]:
        """The `cfg_id`s that have no row yet."""
        done = {row["cfg_id"] for row in self.rows}
        return [cfg_id for cfg_id in self._space.ids if cfg_id not in done]

    def append(self, cfg_id: int, figures: Mapping[str, object]) -> None:
        """Append the row of a stitch, with its costs and these figures, and flush it to the disk."""
        row = cost_row(self._space, cfg_id, self.cost(cfg_id)) | dict(figures)
        if self.path.exists() and not self.path.read_text().endswith("\n"):  # a killed run left it, maybe within a row
            write_rows(self.path, read_rows(self.path))
        with opened(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        sync(self.path)
        self.rows.append(row)

    def rewrite(self) -> None:
        """Write all rows again, with figures that were changed in memory."""
        write_rows(self.path, self.rows)


def difference(row: Row, space: StitchSpace, cost: Callable[[int], Cost] | None) -> str:
    """The contradiction between a row, ours or published, and these stitches and costs; empty if there is none."""
    cfg_id = row["cfg_id"]
    if cfg_id not in space.ids:
        return f"it has cfg_id {cfg_id}, this space has {space.ids_text}"
    # Published rows have no 'stitch', and their 'params' leave some parameters out.
    expected: Row = {"stitch": space[cfg_id].name} | ({"flops": cost(cfg_id).flops} if cost else {})
    wrong = [key for key in expected if key in row and row[key] != expected[key]]
    return f"its cfg_id {cfg_id} has {wrong[0]} {row[wrong[0]]}, but {expected[wrong[0]]} here" if wrong else ""
