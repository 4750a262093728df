"""Other models' published results beside those of a ledger, and the stitches that a single model beats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from stitchkit.display import counted, listed
from stitchkit.errors import InputError, printable
from stitchkit.files import read_table
from stitchkit.measure.ledger import COSTS, Row, figure_text, nouns_of
from stitchkit.measure.metric import ACCURACY, in_sentence

# Names of columns in the order of look-up, with the factor that makes their values ours. fvcore, timm
# and this project count a multiply-add as one FLOP.
_COLUMNS = {
    "acc1": {"acc1": 1.0, "top1": 1.0, "accuracy": 1.0},
    "flops": {"flops": 1.0, "gmacs": 1e9, "infer_gmacs": 1e9},
    "params": {"params": 1.0, "param_count": 1e6},
    "latency_ms": {"latency_ms": 1.0},
}
_NAMES = ("name", "model")
_SIZES = ("img_size", "infer_img_size")
_WORDS = {
    "acc1": "top-1 accuracies in percent",
    "flops": "FLOPs",
    "params": "parameters",
    "latency_ms": "latencies in ms",
}
_SINGLE = {
    "flops": "give single FLOPs, or name the column 'gmacs' if it counts billions of multiply-adds",
    "params": "give single parameters, or name the column 'param_count' if it counts millions",
}
"""What to do if a column must be in another unit."""
_LARGE = {
    1e9: "give billions of multiply-adds, or name the column 'flops' if it counts single ones",
    1e6: "give millions, or name the column 'params' if it counts single parameters",
}
"""The same for columns that count billions or millions, by the unit."""
_MOST = 1e5  # no model has more billions of multiply-adds, or millions of parameters
_SAME = 1.01  # costs up to this ratio are the same: published tables are rounded to three digits and less


class Overlay(NamedTuple):
    """Other models from source files: their `name`, `acc1` in percent and costs, and what was left out, in words."""

    source: str
    models: list[Row]
    left_out: str

    @property
    def caption(self) -> str:
        """What a reader must know of these models."""
        return f"{self.source}; measured elsewhere, perhaps on other images or machines"

    @property
    def remark(self) -> str:
        """The caption and what was left out, in brackets: the end of a sentence on these models."""
        return f"({self.caption}; {self.left_out})" if self.left_out else f"({self.caption})"


class _Line(NamedTuple):
    name: str
    img_size: str
    figures: dict[str, float]


def read_overlay(
    files: Sequence[str | Path], costs: Sequence[str], metric: str = ACCURACY, *, every: bool = False
) -> Overlay:
    """The models of CSV files that have an accuracy and at least one (or every one) of these costs of a ledger.

    Files without accuracies give the costs of models in the others: timm publishes two files, which share model names
    and image sizes, but only one has the tags of weights.
    """
    if metric != ACCURACY:
        raise InputError(f"--overlay compares top-1 accuracies, not {in_sentence(metric)}; omit it")
    sources = [Path(path) for path in files]
    tables = [(table_file, _columns_of(table_file)) for table_file in sources]
    _check_columns(tables, [["acc1"], *([[cost] for cost in costs] if every else [costs])])
    lines = {table_file: list(_lines(table_file, table)) for table_file, table in tables}
    measured = [line for table_file, table in tables if _column(table, "acc1") for line in lines[table_file]]
    costed: dict[str, list[_Line]] = {}
    for line in (line for table_file, table in tables if not _column(table, "acc1") for line in lines[table_file]):
        costed.setdefault(line.name, []).append(line)
    models = [{"name": line.name, **_costs_of(line, costed), **line.figures} for line in measured]
    enough = all if every else any
    complete = [model for model in models if "acc1" in model and enough(cost in model for cost in costs)]
    needed = (" and " if every else " or ").join(_WORDS[cost] for cost in costs)
    if not complete:
        raise InputError(
            f"none of {counted(len(models), 'model')} of --overlay has both an accuracy and {needed}; complete the "
            "file, or check that the names and image sizes of two files agree"
        )
    missing, number = len(models) - len(complete), counted(len(models), "model")
    left_out = f"left out {missing} of {number}, which lack an accuracy or {needed}" if missing else ""
    return Overlay(printable(", ".join(table_file.name for table_file in sources)), complete, left_out)


def _columns_of(path: Path) -> dict[str, list[str]]:
    """The columns of a file by their names, whose case and margins do not matter."""
    columns, written = dict[str, list[str]](), dict[str, str]()
    for key, column in read_table(path).items():
        name = key.strip().lower()
        if name in columns:
            pair = f"'{written[name][:30]}' and '{key[:30]}'"
            raise InputError(f"'{path}' has the columns {pair}, which mean the same; remove or rename one")
        columns[name], written[name] = column, key
    return columns


def _check_columns(tables: Sequence[tuple[Path, Mapping[str, object]]], needs: Sequence[Sequence[str]]) -> None:
    """Refuse tables without names, or without any figure of one of the `needs`."""
    for path, table in tables:
        if not any(name in table for name in _NAMES):
            raise InputError(f"'{path}' has no column {_either(_NAMES)} of models; it has {_found(table)}")
    has = _found([column for _, table in tables for column in table])
    for figures in needs:
        if not any(_column(table, figure) for _, table in tables for figure in figures):
            needed = ", or ".join(f"{_WORDS[figure]}: a column {_either([*_COLUMNS[figure]])}" for figure in figures)
            raise InputError(f"--overlay needs {needed}; it has {has}; rename a column, or add a file that has it")


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))


def _found(columns: Sequence[str] | Mapping[str, object]) -> str:
    return f"the columns {listed([column[:30] for column in columns], most=12)}" if columns else "no columns"


def _column(table: Mapping[str, object], figure: str) -> str:
    return next((name for name in _COLUMNS[figure] if name in table), "")


def _lines(path: Path, table: Mapping[str, Sequence[str]]) -> Iterator[_Line]:
    columns = {figure: name for figure in _COLUMNS if (name := _column(table, figure))}
    values = {figure: _values(path, figure, name, table[name]) for figure, name in columns.items()}
    names = next(table[name] for name in _NAMES if name in table)
    sizes = next((table[name] for name in _SIZES if name in table), [""] * len(names))
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        figures = {figure: value for figure, column in values.items() if (value := column[number]) is not None}
        if name.strip():
            yield _Line(printable(name.strip()), size.strip(), figures)


def _values(path: Path, figure: str, name: str, cells: Sequence[str]) -> list[float | None]:
    """The figures in a column; None where a cell is empty, or holds a cost that was rounded to 0."""
    most = 100.0 if figure == "acc1" else math.inf
    values: list[float | None] = []
    for number, cell in enumerate(cells, start=2):
        try:
            value = float(cell.replace(",", "") or "nan")  # timm writes 1,014.45
        except ValueError:
            value = -1.0
        if not (math.isnan(value) or 0 <= value <= most) or math.isinf(value):
            limits = "from 0 to 100" if figure == "acc1" else "from 0"
            raise InputError(f"'{path}', line {number} has {name} {cell[:30]!r}, which is not a number {limits}; "
                             "correct it, or leave it empty")  # fmt: skip
        is_known = not math.isnan(value) and (value > 0 or figure == "acc1")
        values.append(value * _COLUMNS[figure][name] if is_known else None)
    largest = max((value for value in values if value is not None), default=math.inf)
    if figure == "acc1" and largest <= 1:
        raise InputError(f"'{path}' has accuracies of at most 1; give percent, such as 80 for 0.8")
    if name == figure and figure in _SINGLE and largest < 1000:
        raise InputError(f"'{path}' has at most {largest:g} in its column '{name}'; {_SINGLE[figure]}")
    if (unit := _COLUMNS[figure][name]) in _LARGE and _MOST * unit < largest < math.inf:
        raise InputError(f"'{path}' has {largest / unit:g} in its column '{name}'; {_LARGE[unit]}")
    return values


def _costs_of(line: _Line, costed: Mapping[str, Sequence[_Line]]) -> dict[str, float]:
    """The costs of a model from the files of costs: by its name, or by the part of it without the tag."""
    for name in (line.name, line.name.split(".")[0]):
        sizes = {other.img_size: other.figures for other in costed.get(name, ())}
        if line.img_size in sizes:
            return sizes[line.img_size]
        if len(sizes) == 1 and (not line.img_size or "" in sizes):
            return next(iter(sizes.values()))
    return {}


def beaten(rows: Sequence[Row], models: Sequence[Row], cost: str) -> list[tuple[Row, Row]]:
    """The rows that a model of the same or a lower cost beats in accuracy, each with the most accurate such model."""
    known = [model for model in models if cost in model]
    pairs = []
    for row in rows:
        affordable = (model for model in known if model[cost] <= _SAME * row[cost])
        best = max(affordable, key=lambda model: model["acc1"], default=row)
        if best["acc1"] > row["acc1"]:
            pairs.append((row, best))
    return pairs


def verdict(front: Sequence[Row], models: Sequence[Row], cost: str) -> str:
    """How many rows of a front a single model beats, and where by most."""
    number = counted(len(front), nouns_of(front)[0])
    pairs = beaten(front, models, cost)
    if not pairs:
        noun = "latency" if cost == "latency_ms" else _WORDS[cost]
        return f"none of {number} on the front is beaten by a single model of the same or a lower cost in {noun}"
    row, model = max(pairs, key=lambda pair: pair[1]["acc1"] - pair[0]["acc1"])
    name = f" ({row['stitch']})" if "stitch" in row else ""
    are = "is" if len(pairs) == 1 else "are"
    return (
        f"{len(pairs)} of {number} on the front {are} beaten by a single model; by most: "
        f"at {figure_text(cost, model[cost])}, {model['name']} has {model['acc1']:.2f} %, {_points(row, model)} more "
        f"than cfg_id {row['cfg_id']}{name} at {figure_text(cost, row[cost])}"
    )


def better_single_model(best: Row, limits: Mapping[str, float], models: Sequence[Row]) -> Row | None:
    """The most accurate model that beats a stitch within limits on costs, by default the stitch's own FLOPs."""
    limits = limits or {"flops": _SAME * best["flops"]}
    within = (model for model in models if all(model.get(cost, math.inf) <= most for cost, most in limits.items()))
    rival = max(within, key=lambda model: model["acc1"], default=best)
    return rival if rival["acc1"] > best["acc1"] else None


def comparison(best: Row, model: Row | None, overlay: Overlay) -> str:
    """The line that says which single model, if any, is better than the stitch that was picked."""
    if model is None:
        return f"no single model of such a cost is more accurate {overlay.remark}"
    costs = " and ".join(figure_text(cost, model[cost]) for cost in COSTS.values() if cost in model)
    figures = f"{model['name']} with {costs} has {model['acc1']:.2f} %, {_points(best, model)} more"
    return f"a single model is better: {figures} {overlay.remark}"


def _points(row: Row, model: Row) -> str:
    return f"{model['acc1'] - row['acc1']:.2f} points"
