"""Heat maps of a sweep: an accuracy for each pair of two things that vary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from stitchkit.measure.figure import new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure


class Side(NamedTuple):
    """A side of a heat map: the column of the table that varies along it, and its values in order."""

    key: str
    values: Sequence[str]


def draw_heat_map(axes: Axes, final: pd.DataFrame, rows: Side, columns: Side, *, limits: Sequence[float]) -> QuadMesh:
    """Draw the final accuracy of each job, whose colours range over `limits`; a cell without a job is a dash."""
    table = final.pivot_table(index=rows.key, columns=columns.key, values="test_accuracy")
    # Edges, not centres: of a single row or column, matplotlib would not know the size.
    edges = ([place - 0.5 for place in range(len(side.values) + 1)] for side in (columns, rows))
    axes.set_facecolor("#eeeeee")
    # A mesh, because an image would be pixels in a vector file.
    mesh = axes.pcolormesh(
        *edges, table.reindex(rows.values, columns=columns.values), cmap="viridis", vmin=min(limits), vmax=max(limits)
    )  # fmt: skip
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    jobs = {(job[rows.key], job[columns.key]): job for _, job in final.iterrows()}
    for row, name in enumerate(rows.values):
        for column, other in enumerate(columns.values):
            _write_value(axes, column, row, jobs.get((name, other)), mesh)
    return mesh


def _write_value(axes: Axes, x: int, y: int, job: pd.Series | None, mesh: QuadMesh) -> None:
    """Write a job's accuracy into its cell, light on dark."""
    low, high = mesh.get_clim()
    text, color = ("–", "#999999") if job is None else (shown(job, "\n"), "black")
    if job is not None and job["test_accuracy"] <= low + 0.6 * (high - low):  # colours below this are dark
        color = "white"
    axes.text(x, y, text, ha="center", va="center", color=color, fontsize=8)


def shown(job: pd.Series, between: str) -> str:
    """The accuracy of a job, with its spread where it has several seeds."""
    mean, spread = job["test_accuracy"], job["test_accuracy_std"]
    return f"{mean:.1f}{between}± {spread:.1f}" if spread == spread else f"{mean:.1f}"  # NaN is unequal to itself


def draw_cross(final: pd.DataFrame, title: str) -> Figure:
    """The accuracy of every head on every encoder; the encoder before fine-tuning comes first."""
    heads = Side("head_dataset", sorted(final["head_dataset"].unique()))
    encoders = Side(
        "encoder_dataset", sorted(final["encoder_dataset"].unique(), key=lambda name: (name != "base", name))
    )
    figure = new_figure(3.6 + 0.75 * len(encoders.values), 1.8 + 0.5 * len(heads.values))
    axes = figure.add_subplot()
    mesh = draw_heat_map(axes, final, heads, encoders, limits=[*final["test_accuracy"]])
    axes.set_xticks(range(len(encoders.values)), encoders.values, rotation=45, ha="right")
    axes.set_yticks(range(len(heads.values)), heads.values)
    axes.set(xlabel="encoder, fine-tuned for", ylabel="head and test data")
    figure.colorbar(mesh, ax=axes, label="test accuracy (%)", pad=0.02)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure
