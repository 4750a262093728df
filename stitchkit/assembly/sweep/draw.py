"""Pictures of a sweep: accuracy by gap and adapter, over parameters, and over epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from stitchkit.assembly.sweep.plan import UNCUT
from stitchkit.assembly.sweep.stitchers import FINETUNE, STITCHERS
from stitchkit.display import quantity

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_ORDER = (FINETUNE, *STITCHERS)
# The hue shows the units of an adapter and the shade when it resizes, so that thirteen adapters can be told apart.
_HUES = {"linear": "Blues", "linear_relu": "Greens", "conv3x3": "YlOrBr", "bottleneck": "Reds", "block": "Purples"}
_SHADES = {"never": 0.95, "before": 0.7, "after": 0.55, "stride": 0.45}
_MARKERS = "osD^vP"
_LINES = ("--", ":")


def draw(rows: pd.DataFrame) -> dict[str, Figure]:
    """The pictures of one sweep with results of stitched networks, by the ends of their names."""
    title, final = str(rows["arch"].iloc[0]), _final(rows)
    uncut = _uncut(final)
    stitched, final = rows[rows["gap"] != ""], final[final["gap"] != ""]
    # Adapters in the order of the published table.
    adapters = sorted(final["adapter"].unique(), key=lambda name: _ORDER.index(name) if name in _ORDER else 99)
    gaps = sorted(final["gap"].unique(), key=lambda gap: [int(number) for number in gap.split(",")])
    return {
        "heatmap": _heat_map(final, adapters, gaps, uncut, title),
        "parameters": _accuracy_over_parameters(final, adapters, uncut, title),
        "curves": _learning_curves(stitched, adapters, gaps, uncut),
    }


def _final(rows: pd.DataFrame) -> pd.DataFrame:
    """The last epoch of each job, averaged over its seeds."""
    last = rows.sort_values("epoch").groupby(["job", "seed"], dropna=False).tail(1)
    figures = last.groupby("job")[["test_accuracy"]].mean()
    return last.drop_duplicates("job").drop(columns="test_accuracy").merge(figures, on="job")


def _uncut(final: pd.DataFrame) -> dict[str, float]:
    """Accuracy of each uncut network that was measured."""
    if "uncut" not in final:
        return {}  # a sweep of random weights has no uncut networks
    accuracy = final.set_index("uncut")["test_accuracy"]
    return {f"uncut {name}": float(accuracy[name]) for name in UNCUT if name in accuracy}


def _heat_map(
    final: pd.DataFrame, adapters: Sequence[str], gaps: Sequence[str], uncut: Mapping[str, float], title: str
) -> Figure:
    """The final accuracy of each adapter in each gap; the uncut networks are lines on the colour bar."""
    table = final.pivot_table(index="adapter", columns="gap", values="test_accuracy").reindex(adapters, columns=gaps)
    figure = _figure(3.6 + 0.75 * len(gaps), 1.9 + 0.42 * len(adapters))
    axes = figure.add_subplot()
    axes.set_facecolor("#eeeeee")
    values = [*final["test_accuracy"], *uncut.values()]
    image = axes.imshow(table, cmap="viridis", aspect="auto", vmin=min(values), vmax=max(values))
    _write_values(axes, table, image)
    axes.set_xticks(range(len(gaps)), [_gap_label(final, gap) for gap in gaps])
    axes.set_yticks(range(len(adapters)), [_readable(name) for name in adapters])
    axes.set_xlabel("slices left out, and ↓ the down-samplings\nthat the configuration counts among them")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, label="test accuracy (%)", pad=0.02)
    for value in uncut.values():
        bar.ax.axhline(value, color="#e45756", linewidth=2)
    reference = ", ".join(f"{name} {value:.1f} %" for name, value in uncut.items())
    figure.suptitle(title + (f"\nred lines: {reference}" if reference else ""), x=0.01, ha="left", fontsize=10)
    return figure


def _gap_label(rows: pd.DataFrame, gap: str) -> str:
    count = int(rows.loc[rows["gap"] == gap, "num_downsamples"].iloc[0])
    first, last = gap.split(",")
    return f"{first}–{last}\n↓{count}" if first != last else f"{first}\n↓{count}"


def _write_values(axes: Axes, table: pd.DataFrame, image: AxesImage) -> None:
    """Write each cell's accuracy into it, light on dark; a cell without one is a dash."""
    low, high = image.get_clim()
    for row, values in enumerate(table.to_numpy()):
        for column, value in enumerate(values):
            if value != value:  # NaN
                axes.text(column, row, "–", ha="center", va="center", color="#999999")
                continue
            color = "white" if value <= low + 0.6 * (high - low) else "black"  # colours below this are dark
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=color, fontsize=8)


def _accuracy_over_parameters(
    final: pd.DataFrame, adapters: Sequence[str], uncut: Mapping[str, float], title: str
) -> Figure:
    """The final accuracy over the parameters that were trained; colours are adapters, markers the down-samplings."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    colors = _colors(adapters)
    figure = _figure(9, 5)
    axes = figure.add_subplot()
    handles = [Line2D([], [], marker="o", linestyle="", color=colors[name], label=_readable(name)) for name in adapters]
    for (count, chosen), marker in zip(final.groupby("num_downsamples"), cycle(_MARKERS), strict=False):
        axes.scatter(
            chosen["num_trainable_params"],
            chosen["test_accuracy"],
            c=[colors[name] for name in chosen["adapter"]],
            marker=marker,
            s=42,
            alpha=0.85,
            edgecolors="white",
            linewidths=0.5,
        )
        label = f"{count:.0f} down-sampling{'s' * (count != 1)}"
        handles.append(Line2D([], [], marker=marker, linestyle="", color="#555555", label=label))
    _draw_uncut(axes, uncut)
    axes.set(xscale="log", xlabel="trained parameters", ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: quantity(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    lines = axes.get_legend_handles_labels()[0]
    figure.legend(handles=[*handles, *lines], loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _learning_curves(
    rows: pd.DataFrame, adapters: Sequence[str], gaps: Sequence[str], uncut: Mapping[str, float]
) -> Figure:
    """Test accuracy over epochs: a panel for each gap, a line for each adapter."""
    colors = _colors(adapters)
    columns = math.ceil(len(gaps) ** 0.5)
    lines = -(-len(gaps) // columns)
    figure = _figure(3.0 * columns + 2.6, 2.4 * lines + 0.6)
    panels = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes, gap in zip(panels, gaps, strict=False):
        here = rows[rows["gap"] == gap].groupby(["adapter", "epoch"])["test_accuracy"].mean().dropna()
        for number, adapter in enumerate(adapters):
            if adapter in here:
                # If the curves of adapters coincide, a thinner line on a thicker one keeps both visible.
                width = max(1.2, 2.4 - 0.15 * number)
                mean = here[adapter]
                axes.plot(mean.index, mean, color=colors[adapter], linewidth=width, label=_readable(adapter))
        _draw_uncut(axes, uncut)
        axes.set_title(f"gap {gap.replace(',', '–')}", fontsize=9)
        axes.grid(alpha=0.3)
    # Panels share their axes, so those above an empty panel would lose their labels.
    for axes in panels[len(gaps) - columns :]:
        axes.tick_params(labelbottom=True)
    for axes in panels[len(gaps) :]:
        axes.set_visible(False)
    found = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = {_readable(name): number for number, name in enumerate(adapters)}
    labels = sorted(found, key=lambda label: order.get(label, len(order)))
    figure.legend([found[label] for label in labels], labels, loc="outside right upper", fontsize=8, frameon=False)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("test accuracy (%)", fontsize=10)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _colors(adapters: Sequence[str]) -> dict[str, tuple[float, float, float, float]]:
    """A hue for each kind of unit, with a shade for when the map is resized; black without an adapter."""
    from matplotlib import colormaps

    black = (0.0, 0.0, 0.0, 1.0)
    return {
        name: colormaps[_HUES[known.unit]](_SHADES[known.resize]) if (known := STITCHERS.get(name)) else black
        for name in adapters
    }


def _readable(adapter: str) -> str:
    return adapter.replace("_", " ")


def _draw_uncut(axes: Axes, uncut: Mapping[str, float]) -> None:
    for (name, value), line in zip(uncut.items(), _LINES, strict=False):
        axes.axhline(value, color="#333333", linestyle=line, linewidth=1.2, label=f"{name} {value:.1f} %")
