"""The Pareto front of a ledger: its table and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stitchkit.display import aligned, quantity
from stitchkit.errors import InputError
from stitchkit.files import check_folder_of, replacing
from stitchkit.measure.ledger import Row, check_figures
from stitchkit.routes import Stitch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIGURES = (("latency_ms", 2), ("images_per_s", 1), ("acc1", 2), ("acc5", 2), ("loss", 4))
"""Measured figures in a table, and their number of digits."""
_Series = tuple[str, str, Sequence[Row]]
"""The label, the color and the rows of a part of a picture."""


def pareto_front(rows: Sequence[Row], cost: str = "flops") -> list[Row]:
    """The rows that no other row beats in both cost and accuracy, from cheap to costly."""
    check_figures(rows, (cost, "acc1"))
    front: list[Row] = []
    # From cheap to costly, a row is on the front if it is more accurate than all before it. At equal cost, the most
    # accurate comes first, so only it stays. If both are equal, as happens with small validation sets, the stable sort
    # keeps the ledger's first row.
    for row in sorted(rows, key=lambda row: (row[cost], -row["acc1"])):
        if not front or row["acc1"] > front[-1]["acc1"]:
            front.append(row)
    return front


def is_anchor(row: Row) -> bool:
    """Whether a row is an uncut anchor's; False for published rows, which do not name their stitch."""
    return "stitch" in row and Stitch.parse(row["stitch"]).is_anchor


def table(rows: Sequence[Row]) -> str:
    """Rows as text in columns, with `*` for anchors and `-` for missing figures."""
    figures = [(key, digits) for key, digits in _FIGURES if any(key in row for row in rows)]
    head = ["", "cfg_id", "stitch", "FLOPs", "params", *(key for key, _ in figures)]
    body = [
        [
            "*" if is_anchor(row) else "",
            str(row["cfg_id"]),
            row.get("stitch", "-"),
            quantity(row["flops"]),
            quantity(row["params"]) if "params" in row else "-",
            *(f"{row[key]:.{digits}f}" if key in row else "-" for key, digits in figures),
        ]
        for row in rows
    ]
    return aligned([head, *body], left={0, 2})


def plot(rows: Sequence[Row], path: str | Path, *, title: str = "") -> None:
    """Draw accuracy over FLOPs: all stitches, the front through them, anchors marked, area by parameters."""
    anchors = [row for row in rows if is_anchor(row)]
    others = [row for row in rows if not is_anchor(row)]
    clouds: list[_Series] = [("stitches", "#4c78a8", others), ("anchors", "#e45756", anchors)]
    figure, axes = _draw(title, clouds, [("Pareto front", "#333333", rows)])
    # Anchors are near the edges of the plot, so their labels point inwards. The middle of a logarithmic axis is the
    # geometric mean.
    middle = (min(row["flops"] for row in rows) * max(row["flops"] for row in rows)) ** 0.5
    for row in anchors:
        left = row["flops"] > middle
        axes.annotate(
            Stitch.parse(row["stitch"]).segments[0].anchor,
            (row["flops"], row["acc1"]),
            textcoords="offset points",
            xytext=(-9 if left else 9, -13),
            ha="right" if left else "left",
            fontweight="bold",
        )
    axes.legend(loc="lower right", title="area: parameters")
    save_figure(figure, path)


def plot_ledgers(ledgers: Mapping[str, Sequence[Row]], path: str | Path, *, title: str = "") -> None:
    """Draw the stitches of several ledgers, by name, like `plot`, each ledger in its own color."""
    # C0, C1, ... is matplotlib's own cycle of colors.
    clouds = [(name, f"C{number}", rows) for number, (name, rows) in enumerate(ledgers.items())]
    figure, axes = _draw(title, clouds, [("", color, rows) for _, color, rows in clouds])
    axes.legend(loc="best", title="lines: Pareto fronts")
    save_figure(figure, path)


def _draw(title: str, clouds: Sequence[_Series], fronts: Sequence[_Series]) -> tuple[Figure, Axes]:
    """A picture of accuracy over FLOPs: clouds of stitches, and the fronts of rows as lines."""
    # Imported here, because matplotlib is slow to import. `Figure` without pyplot needs no display and has no global
    # state.
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    # Areas are comparable across all clouds. Published rows without parameters are drawn small.
    most = max(1, *(row.get("params", 1) for _, _, rows in clouds for row in rows))
    for label, color, rows in clouds:
        sizes = [20 + 100 * row.get("params", most / 4) / most for row in rows]
        if rows:  # an empty cloud would still be in the legend
            x, y = _places(rows)
            axes.scatter(
                x, y, s=sizes, color=color, alpha=0.75, edgecolors="white", linewidths=0.5, label=label, zorder=3
            )
    for label, color, rows in fronts:
        axes.plot(*_places(pareto_front(rows)), color=color, linewidth=1, label=label or None)
    # Anchors differ by factors in cost; on a linear axis the cheap stitches would hide each other.
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: quantity(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="FLOPs of one image (multiply-adds)", ylabel="top-1 accuracy (%)", title=title)
    axes.margins(0.07, 0.1)
    axes.grid(alpha=0.3)
    return figure, axes


def _places(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [row["flops"] for row in rows], [row["acc1"] for row in rows]


def check_plot(path: str | Path) -> None:
    """Check that a plot can be written, before the work that it shows."""
    from matplotlib.backend_bases import FigureCanvasBase  # slow to import

    path, known = Path(path), FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise InputError(f"plot '{path}' cannot be written: no format '{path.suffix}'; choose .png, .svg or .pdf")
    check_folder_of(path)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a picture; its suffix selects the format."""
    path = Path(path)
    try:
        with replacing(path) as draft:
            figure.savefig(draft, format=path.suffix[1:])
    except (ValueError, OSError) as error:
        raise InputError(f"plot '{path}' cannot be written: {error}") from error
