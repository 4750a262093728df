"""Heat maps of a sweep: a figure for each pair of two things that vary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from stitchkit.measure.figure import new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure


FIGURES = {"test_accuracy": "test accuracy", "test_miou": "test mIoU", "test_delta1": "test delta1"}
"""The figures of the tables, all in percent, and their names in pictures."""


class Side(NamedTuple):
    """A side of a heat map: the column of the table that varies along it, and its values in order."""

    key: str
    values: Sequence[str]


def draw_heat_map(
    axes: Axes,
    final: pd.DataFrame,
    rows: Side,
    columns: Side,
    *,
    limits: Sequence[float],
    figure: str = "test_accuracy",
) -> QuadMesh:
    """Draw the final figure of each job, whose colours range over `limits`; a cell without a job is a dash."""
    table = final.pivot_table(index=rows.key, columns=columns.key, values=figure)
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
            _write_value(axes, column, row, jobs.get((name, other)), mesh, figure)
    return mesh


def _write_value(axes: Axes, x: int, y: int, job: pd.Series | None, mesh: QuadMesh, figure: str) -> None:
    """Write a job's figure into its cell, light on dark."""
    low, high = mesh.get_clim()
    text, color = ("–", "#999999") if job is None else (shown(job, "\n", figure), "black")
    if job is not None and job[figure] <= low + 0.6 * (high - low):  # colours below this are dark
        color = "white"
    axes.text(x, y, text, ha="center", va="center", color=color, fontsize=8)


def shown(job: pd.Series, between: str, figure: str = "test_accuracy") -> str:
    """A figure of a job, with its spread where it has several seeds."""
    mean, spread = job[figure], job[f"{figure}_std"]
    return f"{mean:.1f}{between}± {spread:.1f}" if spread == spread else f"{mean:.1f}"  # NaN is unequal to itself


def draw_cross(final: pd.DataFrame, title: str) -> Figure:
    """Every head on every encoder, a map for each figure of the heads; the encoder before fine-tuning comes first."""
    measured = {key: final[final[key].notna()] for key in FIGURES if key in final and final[key].notna().any()}
    heads = {key: Side("head_dataset", sorted(rows["head_dataset"].unique())) for key, rows in measured.items()}
    # In the order of the rows, so that each head meets its own encoder on a diagonal.
    order = [name for side in heads.values() for name in side.values]
    names = final["encoder_dataset"].unique()
    encoders = Side(
        "encoder_dataset", sorted(names, key=lambda name: (name != "base", order.index(name) if name in order else 0))
    )
    # Several maps have room for the names of their colour bars.
    heights = [max(len(side.values), 3 if len(heads) > 1 else 1) for side in heads.values()]
    figure = new_figure(3.6 + 0.75 * len(encoders.values), 1.8 + 0.5 * sum(heights))
    maps = figure.subplots(len(heads), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (key, rows) in zip(maps, measured.items(), strict=True):
        mesh = draw_heat_map(axes, rows, heads[key], encoders, limits=[*rows[key]], figure=key)
        axes.set_xticks([])
        axes.set_yticks(range(len(heads[key].values)), heads[key].values)
        figure.colorbar(mesh, ax=axes, label=f"{FIGURES[key]} (%)", pad=0.02)
    maps[-1].set_xticks(range(len(encoders.values)), encoders.values, rotation=45, ha="right")
    maps[-1].set_xlabel("encoder, fine-tuned for")
    figure.supylabel("head and test data", fontsize=maps[-1].xaxis.label.get_size())
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure
