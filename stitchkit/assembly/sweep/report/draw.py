"""Pictures of a sweep: accuracy by gap and adapter, over parameters, and figures of merit over epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, cycle, product
from typing import TYPE_CHECKING, Literal, NamedTuple

from stitchkit.assembly.sweep.kinds.gaps import UNCUT
from stitchkit.assembly.sweep.kinds.stitchers import FINETUNE, STITCHERS
from stitchkit.display import counted
from stitchkit.measure.figure import draw_costs, new_figure, side_by_side

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure


_ORDER = (FINETUNE, *STITCHERS)
# The hue shows the units of an adapter and the shade when it resizes, to tell thirteen adapters apart.
_HUES = {"linear": "Blues", "linear_relu": "Greens", "conv3x3": "YlOrBr", "bottleneck": "Reds", "block": "Purples"}
_SHADES = {"never": 0.95, "before": 0.7, "after": 0.55, "stride": 0.45}
_UNITS = {"linear_relu": "linear + ReLU", "conv3x3": "3×3 convolution"}
_RESIZES = {
    "never": "{}, no down-sampling",
    "before": "down-sampling, then {}",
    "after": "{}, then down-sampling",
    "stride": "{} with a stride",
}
_MARKERS = "osD^vP"
_LINES: Sequence[Literal["--", ":"]] = ("--", ":")
_UNCUT = "#333333"
_Color = tuple[float, float, float, float]
_POINT = 7  # diameter of a point, in typographic points
_DASH = 4  # length of a dash, in widths of its line
_WIDTH = 1  # points of a figure (%) that a line in a panel covers


def draw(rows: pd.DataFrame, title: str) -> dict[str, Figure]:
    """The pictures of one sweep with results of stitched networks, by the ends of their names."""
    final = summarise(rows)
    uncut = _uncut(final)
    stitched, final = rows[rows["gap"] != ""], final[final["gap"] != ""]
    # Adapters in the order of the published table.
    adapters = sorted(final["adapter"].unique(), key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    gaps = sorted(final["gap"].unique(), key=lambda gap: [int(number) for number in gap.split(",")])
    return {
        "heatmap": _heat_map(final, adapters, gaps, uncut, title),
        "parameters": _accuracy_over_parameters(final, adapters, uncut, title),
        "curves": _learning_curves(
            {f"gap {_gap(gap)}": stitched[stitched["gap"] == gap] for gap in gaps}, "adapter", _colors(adapters), uncut,
            title,
        ),
    }  # fmt: skip


def draw_jobs(rows: pd.DataFrame, title: str) -> dict[str, Figure]:
    """The learning curves of a sweep without gaps: a picture for each figure, a line for each job, by their names."""
    from matplotlib import colormaps

    colors = {job: colormaps["tab20"](number % 20) for number, job in enumerate(sorted(rows["job"].unique()))}
    measured = [key for key in FIGURES if key in rows and rows[key].notna().any()]
    return {
        "curves" if key == "test_accuracy" else f"curves-{key.removeprefix('test_')}": _learning_curves(
            {"": rows}, "job", colors, {}, title, key
        )
        for key in measured
    }


def _uncut(final: pd.DataFrame) -> dict[str, float]:
    """Accuracy of each uncut network that was measured, by its name with that accuracy."""
    if "uncut" not in final:
        return {}  # a sweep of random weights has no uncut networks
    by_name = final.set_index("uncut")
    return {
        f"uncut {name} {shown(by_name.loc[name], ' ')} %": float(by_name.loc[name, "test_accuracy"])
        for name in UNCUT
        if name in by_name.index
    }


def _heat_map(
    final: pd.DataFrame, adapters: Sequence[str], gaps: Sequence[str], uncut: Mapping[str, float], title: str
) -> Figure:
    """The final accuracy of each adapter in each gap; the uncut networks are lines on the colour bar."""
    figure = new_figure(4.8 + 0.75 * len(gaps), 2.3 + 0.42 * len(adapters))
    axes = figure.add_subplot()
    limits = [*final["test_accuracy"], *uncut.values()]
    mesh = draw_heat_map(axes, final, Side("adapter", adapters), Side("gap", gaps), limits=limits)
    axes.set_xticks(range(len(gaps)), [_gap(gap) for gap in gaps])
    axes.set_yticks(range(len(adapters)), [_readable(name) for name in adapters])
    axes.set(xlabel="gap (slices left out)", ylabel="adapter")
    counts = final.drop_duplicates("gap").set_index("gap")["num_downsamples"]
    above = axes.secondary_xaxis("top")
    above.set_xticks(range(len(gaps)), [f"{counts[gap]:.0f}" for gap in gaps])
    above.set_xlabel("down-samplings in the gap,\nas configured")
    above.tick_params(length=0)
    above.spines[:].set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, label="test accuracy (%)", pad=0.02)
    for value in uncut.values():
        # The best network is at the end of the bar, where its line would be cut off and hidden by the frame.
        bar.ax.axhline(value, color="#e45756", linewidth=2, clip_on=False, zorder=3)
    note = f"\nred lines on the colour bar: the whole networks,\n{', '.join(uncut)}" if uncut else ""
    figure.suptitle(title + note, x=0.01, ha="left", fontsize=10)
    return figure


def _gap(gap: str) -> str:
    first, last = gap.split(",")
    return f"{first}–{last}" if first != last else first


def _accuracy_over_parameters(
    final: pd.DataFrame, adapters: Sequence[str], uncut: Mapping[str, float], title: str
) -> Figure:
    """The final accuracy over the parameters that were trained; colours are adapters, markers the down-samplings."""
    colors, figure = _colors(adapters), new_figure(9, 5)
    axes = figure.add_subplot()
    final = final.sort_values(["num_trainable_params", "test_accuracy", "job"])
    x, y, spread = (final[key] for key in ("num_trainable_params", "test_accuracy", "test_accuracy_std"))
    markers = dict(zip(sorted(final["num_downsamples"].unique()), cycle(_MARKERS), strict=False))
    _draw_uncut(axes, uncut)
    draw_costs(axes, cost="trained parameters (coinciding points lie side by side)", accuracy="test accuracy (%)")
    axes.set_title(title, loc="left")
    _add_legend(figure, uncut, colors, markers)
    axes.update_datalim([*zip(x, y - spread.fillna(0), strict=True), *zip(x, y + spread.fillna(0), strict=True)])
    axes.autoscale_view()
    for left, (_, job) in zip(side_by_side(axes, x, y, size=_POINT), final.iterrows(), strict=True):
        color, marker = colors[job["adapter"]], markers[job["num_downsamples"]]
        _draw_point(axes, left, job["test_accuracy"], job["test_accuracy_std"], color, marker)
    return figure


def _draw_point(axes: Axes, x: float, y: float, spread: float, color: _Color, marker: str) -> None:
    axes.errorbar(
        x, y, yerr=spread, color=color, marker=marker, markersize=_POINT,
        markeredgecolor="white", markeredgewidth=0.5, capsize=2, elinewidth=1,
    )  # fmt: skip


def _add_legend(figure: Figure, uncut: Iterable[str], colors: Mapping[str, _Color], markers: Mapping[int, str]) -> None:
    """A legend beside the panels, where it hides nothing: adapters, down-samplings, the lines of uncut networks."""
    from matplotlib.lines import Line2D

    kind = {"marker": "o", "linestyle": ""} if markers else {"linewidth": 2}
    handles = [Line2D([], [], color=color, label=_readable(name), **kind) for name, color in colors.items()]
    for count, marker in markers.items():
        label = counted(int(count), "down-sampling")
        handles.append(Line2D([], [], marker=marker, linestyle="", color="#555555", label=label))
    for name, line in zip(uncut, _LINES, strict=False):
        handles.append(Line2D([], [], linestyle=line, color=_UNCUT, label=name))
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)


def _learning_curves(
    panels: Mapping[str, pd.DataFrame], key: str, colors: Mapping[str, _Color], uncut: Mapping[str, float], title: str,
    figure_of_merit: str = "test_accuracy",
) -> Figure:  # fmt: skip
    """A figure of merit over epochs: panels by title, a line for each value of `key`, a band for its seeds."""
    from matplotlib.ticker import MaxNLocator

    columns = math.ceil(len(panels) ** 0.5)
    lines = -(-len(panels) // columns)
    figure = new_figure(max(3.0 * columns, 5.0) + 2.6, max(2.4 * lines, 3.6) + 0.8)
    places = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    curves = [_curves(rows, key, colors, figure_of_merit) for rows in panels.values()]
    for axes, name, some in zip(places, panels, curves, strict=False):
        _draw_uncut(axes, uncut)
        _draw_curves(axes, some, colors)
        axes.set_title(name, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    # Panels share their axes, so those above an empty panel would lose their labels.
    for axes in places[len(panels) - columns :]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("epoch")
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    epochs = [epoch for some in curves for curve in some.values() for epoch in curve.index] or [0]
    places[0].set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    _add_legend(figure, uncut, colors, {})
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.supylabel(f"{FIGURES[figure_of_merit]} (%)", fontsize=10)
    for axes, some in zip(places, curves, strict=False):  # jobs of one epoch have no line, but points side by side
        single = {name: curve.reset_index().iloc[0] for name, curve in some.items() if len(curve) == 1}
        x, y = ([job[axis] for job in single.values()] for axis in ("epoch", "mean"))
        for left, (name, job) in zip(side_by_side(axes, x, y, size=_POINT), single.items(), strict=True):
            _draw_point(axes, left, job["mean"], job["std"], colors[name], "o")
    return figure


def _curves(rows: pd.DataFrame, key: str, names: Iterable[str], figure_of_merit: str) -> dict[str, pd.DataFrame]:
    """Mean and spread of a figure over the seeds, by epoch, for each of some values of a column."""
    every = rows.groupby([key, "epoch"])[figure_of_merit].agg(["mean", "std"]).dropna(subset=["mean"])
    return {name: every.loc[name] for name in names if name in every.index}


def _draw_curves(axes: Axes, curves: Mapping[str, pd.DataFrame], colors: Mapping[str, _Color]) -> None:
    """Draw the curves of one gap; those that coincide become one line, of dashes in the colours of all."""
    groups: list[list[str]] = []
    for name in curves:
        alike = [group for group in groups if any(_coincide(curves[other], curves[name]) for other in group)]
        groups = [group for group in groups if group not in alike] + [[*chain(*alike), name]]
    for group in groups:
        period = _DASH * len(group)
        for number, name in enumerate(group):
            mean, spread = curves[name]["mean"], curves[name]["std"]
            dashes = (period - _DASH * number, (_DASH, period - _DASH)) if len(group) > 1 else "-"
            axes.fill_between(mean.index, mean - spread, mean + spread, color=colors[name], alpha=0.2, linewidth=0)
            axes.plot(mean.index, mean, color=colors[name], linewidth=1.8, linestyle=dashes)


def _coincide(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    return first.index.equals(second.index) and bool((first["mean"] - second["mean"]).abs().max() < _WIDTH)


def _colors(adapters: Sequence[str]) -> dict[str, _Color]:
    """A hue for each kind of unit, with a shade for when the map is resized; black without an adapter."""
    from matplotlib import colormaps

    black = (0.0, 0.0, 0.0, 1.0)
    return {
        name: colormaps[_HUES[known.unit]](_SHADES[known.resize]) if (known := STITCHERS.get(name)) else black
        for name in adapters
    }


def _readable(adapter: str) -> str:
    if adapter == FINETUNE:
        return "no adapter, all slices trained"
    if (known := STITCHERS.get(adapter)) is None:
        return adapter.replace("_", " ")
    return _RESIZES[known.resize].format(_UNITS.get(known.unit, known.unit))


def _draw_uncut(axes: Axes, uncut: Mapping[str, float]) -> None:
    for value, line in zip(uncut.values(), _LINES, strict=False):
        axes.axhline(value, color=_UNCUT, linestyle=line, linewidth=1.2)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each job, from those of its seeds and epochs, which are all done.

    `test_accuracy` is the mean of the seeds' last epochs and `test_accuracy_std` their standard deviation, which one
    seed does not have; `num_seeds` says how many there are. Figures of dense tasks are likewise.
    """
    import pandas as pd

    last = rows.sort_values("epoch").groupby(["job", "seed"], dropna=False).tail(1)
    known = [key for key in FIGURES if key in last]
    jobs, figures = last.groupby("job"), dict[str, pd.Series]()
    for key in known:
        figures |= {key: jobs[key].mean(), f"{key}_std": jobs[key].std()}
    figures["num_seeds"] = jobs.size()
    varying = ["epoch", "step", "seed", "lr", "loss", "train_loss", *known, "state"]
    about = last.drop_duplicates("job").drop(columns=varying, errors="ignore")
    return about.merge(pd.DataFrame(figures), on="job").sort_values("job", ignore_index=True)


def spread(final: pd.DataFrame) -> str:
    """What the figures of jobs are where some have several seeds, in words; otherwise empty."""
    fewest, most = final["num_seeds"].min(), final["num_seeds"].max()
    return f"mean ± standard deviation of {'' if fewest == most else 'up to '}{most} seeds" if most > 1 else ""


FIGURES = {"test_accuracy": "test accuracy", "test_miou": "test mIoU", "test_delta1": "test delta1"}
"""The figures of the tables, all in percent, and their names in pictures."""


class Side(NamedTuple):
    """A side of a heat map: the column of the table that varies along it, and its values in order."""

    key: str
    values: Sequence[str]


def draw_heat_map(
    axes: Axes, final: pd.DataFrame, rows: Side, columns: Side, *, limits: Sequence[float],
    figure: str = "test_accuracy",
) -> QuadMesh:  # fmt: skip
    """Draw the final figure of each job, whose colours range over `limits`; a cell without a job is a dash."""
    table = final.pivot_table(index=rows.key, columns=columns.key, values=figure)
    # Edges, not centres: of a single row or column, matplotlib would not know the size.
    edges = ([number - 0.5 for number in range(len(side.values) + 1)] for side in (columns, rows))
    axes.set_facecolor("#eeeeee")
    # A mesh, because an image would be pixels in a vector file.
    mesh = axes.pcolormesh(
        *edges, table.reindex(rows.values, columns=columns.values), cmap="viridis", vmin=min(limits), vmax=max(limits)
    )  # fmt: skip
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    jobs = {(job[rows.key], job[columns.key]): job for _, job in final.iterrows()}
    low, high = mesh.get_clim()
    for (y, name), (x, other) in product(enumerate(rows.values), enumerate(columns.values)):
        job = jobs.get((name, other))
        text, color = ("–", "#999999") if job is None else (shown(job, "\n", figure), "black")
        if job is not None and job[figure] <= low + 0.6 * (high - low):  # colours below this are dark
            color = "white"
        axes.text(x, y, text, ha="center", va="center", color=color, fontsize=8)
    return mesh


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
