"""Pictures of the experiments, each from the rows of its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stitchkit.measure.ledger import Row
from stitchkit.measure.pareto import plot, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COMPOSED, _PARENTS = "#4c78a8", "#e45756"


def draw_samples(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over the number of stitching images."""
    figure, axes = _figure("stitching images", "Networks composed with few or many images")
    composed = [row for row in rows if "parents_acc1" in row]
    counts = sorted({row["images"] for row in composed})
    seeds = sorted({row["seed"] for row in composed})
    each = {count: [row["acc1"] for row in composed if row["images"] == count] for count in counts}
    # Dots with the same number of images would overlap; a factor shifts them by a fixed width on the log axis.
    beside = {seed: 1 + 0.03 * (place - (len(seeds) - 1) / 2) for place, seed in enumerate(seeds)}
    x = [row["images"] * beside[row["seed"]] for row in composed]
    axes.scatter(x, [row["acc1"] for row in composed], s=12, alpha=0.4, color=_COMPOSED, label="a composed network")
    axes.plot(counts, [np.mean(each[count]) for count in counts], "o-", color=_COMPOSED, label="mean of the composed")
    axes.plot(counts, [max(each[count]) for count in counts], "s--", color="#333333", label="best of the composed")
    parents = [[row["parents_acc1"] for row in composed if row["images"] == count] for count in counts]
    axes.plot(counts, [np.mean(one) for one in parents], ":", color=_PARENTS, label="mean of their parents")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.legend(loc="best")
    save_figure(figure, path)


def draw_front(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over multiply-adds."""
    plot(rows, path, title="Composed networks (stitches) and their parents (anchors)")


def draw_ensembles(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over the size of ensembles."""
    figure, axes = _figure("networks in the ensemble", "Ensembles of composed networks and of their parents")
    for kind, color, shift in (("composed", _COMPOSED, -0.05), ("parents", _PARENTS, 0.05)):
        these = [row for row in rows if row["kind"] == kind]
        sizes = sorted({row["size"] for row in these})
        means = [np.mean([row["acc1"] for row in these if row["size"] == size]) for size in sizes]
        x = [row["size"] + shift for row in these]
        axes.scatter(x, [row["acc1"] for row in these], s=14, alpha=0.5, color=color)
        axes.plot([size + shift for size in sizes], means, "o-", color=color, label=f"mean of {kind}")
    axes.legend(loc="best")
    save_figure(figure, path)


def draw_finetune(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over epochs of fine-tuning."""
    figure, axes = _figure("epochs of fine-tuning", "Composed networks and their parents, trained alike")
    for name in dict.fromkeys(row["stitch"] for row in rows):  # in the order of the table
        these = [row for row in rows if row["stitch"] == name]
        epochs = [row["epoch"] for row in these]
        style = "-" if ">" in name else "--"
        axes.plot(epochs, [row["acc1"] for row in these], style, marker="o", markersize=4, label=name)
    axes.legend(loc="best", title="dashed: parents")
    save_figure(figure, path)


def _figure(x: str, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel="top-1 accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    return figure, axes
