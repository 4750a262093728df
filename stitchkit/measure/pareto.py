"""The Pareto front of a ledger: its table and its picture."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stitchkit.display import aligned, counted, listed, plural, quantity
from stitchkit.measure.figure import BLUE, RED, check_plot, draw_costs, label_points, new_figure, save_figure
from stitchkit.measure.intervals import add_intervals, compared_beside, told_apart_note
from stitchkit.measure.latency_verdict import check_latencies, latency_note, unreliable
from stitchkit.measure.ledger import COSTS, WITH_INTERVALS, Row, check_figures, nouns_of, read_rows
from stitchkit.measure.metric import ACCURACY, METRICS, by, compared, compared_note, in_sentence, metric_of
from stitchkit.measure.overlay import Overlay, read_overlay, verdict
from stitchkit.routes import Stitch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOWS = {f"{figure}_low": figure for figure in WITH_INTERVALS}  # the lower ends of intervals, and what they are of
_FIGURES = {
    **{"latency_ms": 2, "images_per_s": 1},
    **{key: 2 for metric in METRICS for key in (metric, f"{metric}_low") if key in METRICS or key in _LOWS},
    **{"abs_rel": 4, "rmse": 3, "loss": 4, "kl": 4, "p_front": 2, "tied_with": 0},
}
"""Measured figures in a table, and their number of digits."""
_HEADS = {**dict.fromkeys(_LOWS, "95 %"), "p_front": "P(front)", "tied_with": "tied with"}
"""What some of them are called there."""
_FRONT, _BAND = "Pareto front", "its 95 % intervals"
_AXES = {"flops": "FLOPs of one image (multiply-adds)", "params": "parameters", "latency_ms": "latency of a batch (ms)"}
_ADVICE = {
    "params": "use a ledger made by --eval, or choose another cost",
    "latency_ms": "an evaluation with --latency adds it to a ledger of stitches; for others choose another cost",
}


def pareto_front(rows: Sequence[Row], cost: str = "flops", metric: str | None = None) -> list[Row]:
    """The rows that no other row beats in both cost and metric, from cheap to costly; the metric as in `metric_of`."""
    metric = metric_of(rows, metric)
    check_figures(rows, (cost, metric), _ADVICE)
    return _front(compared(rows, metric), cost, metric)


def _front(rows: Sequence[Row], cost: str, metric: str) -> list[Row]:
    front: list[Row] = []
    # From cheap to costly, a row is on the front if it is more accurate than all before it. At equal cost, the most
    # accurate comes first, so only it stays. If both are equal, as happens with small validation sets, the stable sort
    # keeps the ledger's first row.
    for row in sorted(rows, key=lambda row: (row[cost], -row[metric])):
        if not front or row[metric] > front[-1][metric]:
            front.append(row)
    return front


def in_view(models: Sequence[Row], rows: Sequence[Row], cost: str) -> tuple[list[Row], list[Row]]:
    """Other models near the rows of a ledger, and those of them on the joint front of models and rows.

    Near are costs from half the cheapest row's to twice the costliest's, and accuracies from the lowest row's; farther
    models would shrink the rows to a spot.
    """
    known, costs = [model for model in models if cost in model], [row[cost] for row in rows]
    least = min(row["acc1"] for row in rows)
    near = [model for model in known if min(costs) / 2 <= model[cost] <= 2 * max(costs) and model["acc1"] >= least]
    front = _front([*rows, *known], cost, ACCURACY)
    return near, [model for model in near if model in front]


def is_anchor(row: Row) -> bool:
    """Whether a row is an uncut anchor's; False for published rows, which do not name their stitch."""
    return "stitch" in row and Stitch.parse(row["stitch"]).is_anchor


def table(rows: Sequence[Row]) -> str:
    """Rows as text in columns, with `*` for those that are uncut and `-` for missing figures."""
    figures = [key for key in _FIGURES if any(key in row for row in rows)]
    head = ["", "cfg_id", nouns_of(rows)[0], "FLOPs", "params", *(_HEADS.get(key, key) for key in figures)]
    body = [
        [
            "*" if is_anchor(row) else "",
            str(row["cfg_id"]),
            row.get("stitch", "-"),
            *(quantity(row[key]) if key in row else "-" for key in ("flops", "params")),
            *(_figure(row, key) if key in row else "-" for key in figures),
        ]
        for row in rows
    ]
    return aligned([head, *body], left={0, 2, *([len(head) - 1] if figures[-1:] == ["tied_with"] else [])})


def _figure(row: Row, key: str) -> str:
    if key == "tied_with":
        return listed([*map(str, row[key])]) or "none"
    until = f"-{row[f'{_LOWS[key]}_high']:.2f}" if key in _LOWS else ""
    return f"{row[key]:.{_FIGURES[key]}f}{until}"


def plot(
    rows: Sequence[Row] | Mapping[str, Sequence[Row]], path: str | Path, *, title: str = "", cost: str = "flops",
    overlay: Overlay | None = None, metric: str | None = None,
) -> None:  # fmt: skip
    """Draw a metric over a cost: all rows, their front, and the uncut rows with names; the metric is as in `metric_of`.

    Several ledgers, by name, have a color each. Other models nearby are crosses; those on the joint front have names.
    """
    ledgers = rows if isinstance(rows, Mapping) else {"": rows}
    every = [row for some in ledgers.values() for row in some]
    metric = metric_of(every, metric)
    # C0, C1, ... is matplotlib's own cycle of colors.
    clouds = [(name, f"C{number}", compared(some, metric)) for number, (name, some) in enumerate(ledgers.items())]
    fronts, anchors = {color: some for _, color, some in clouds}, list[Row]()
    if len(ledgers) == 1:
        network, uncut = map(plural, nouns_of(every))
        every = clouds[0][2]
        anchors, fronts = [row for row in every if is_anchor(row)], {"#333333": every}
        clouds = [(network, BLUE, [row for row in every if not is_anchor(row)]), (uncut, RED, anchors)]
    figure, axes = _draw(title, clouds, fronts, cost, overlay, metric)
    names = [Stitch.parse(row["stitch"]).segments[0].anchor for row in anchors]
    label_points(axes, list(zip(*_places(anchors, cost, metric), strict=True)), names)
    if overlay:
        _name_others(axes, overlay, every, cost)
    save_figure(figure, path)


def _draw(
    title: str,
    clouds: Sequence[tuple[str, str, Sequence[Row]]],
    fronts: Mapping[str, Sequence[Row]],
    cost: str,
    overlay: Overlay | None,
    metric: str,
) -> tuple[Figure, Axes]:
    """A picture of a metric over a cost: named clouds with areas by parameters, fronts as lines; both have colors."""
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    # Areas are comparable across all clouds. Published rows without parameters are drawn small.
    most = max(1, *(row.get("params", 1) for _, _, rows in clouds for row in rows))
    for label, color, rows in clouds:
        sizes = [20 + 100 * row.get("params", most / 4) / most for row in rows]
        if rows:  # an empty cloud would still be in the legend
            x, y = _places(rows, cost, metric)
            axes.scatter(
                x, y, s=sizes, color=color, alpha=0.75, edgecolors="white", linewidths=0.5, label=label, zorder=3
            )
    for color, rows in fronts.items():
        _draw_front(axes, pareto_front(rows, cost, metric), cost, metric, color)
    every = [row for _, _, rows in clouds for row in rows]
    axis = _axis(cost, every)
    costs = axis if cost == "params" else f"{axis}; areas show parameters"
    draw_costs(axes, cost=costs, accuracy=f"{in_sentence(metric)} (%)")
    axes.set_title(title)
    if overlay:
        _draw_others(axes, overlay, every, cost)
    # Below, where it hides no stitch.
    legend = figure.legend(loc="outside lower center", ncols=4, frameon=False, title_fontsize="x-small")
    if overlay:
        legend.set_title(f"other models: {overlay.caption}")
        legend.get_title().set_parse_math(False)
    return figure, axes


def _draw_front(axes: Axes, front: Sequence[Row], cost: str, metric: str, color: str) -> None:
    """Draw a front as a line, with the 95 % intervals of its accuracies as a band; one of each is in the legend."""
    named = axes.get_legend_handles_labels()[1]
    x, y = _places(front, cost, metric)
    line, band = (None if text in named else text for text in (_FRONT, _BAND))
    axes.plot(x, y, color=color, linewidth=1, label=line)
    if metric in WITH_INTERVALS and all(f"{metric}_low" in row for row in front):
        low, high = ([row[f"{metric}_{end}"] for row in front] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0, label=band, zorder=0)


def _draw_others(axes: Axes, overlay: Overlay, rows: Sequence[Row], cost: str) -> None:
    """Draw other models as crosses, dark on the joint front, behind the stitches."""
    near, front = in_view(overlay.models, rows, cost)
    for models, color, label, zorder in ((near, "#bbbbbb", "other models", 1), (front, "#333333", None, 2)):
        if models:
            x, y = _places(models, cost, ACCURACY)
            axes.scatter(x, y, s=22, marker="x", color=color, linewidths=1, label=label, zorder=zorder)


def _name_others(axes: Axes, overlay: Overlay, rows: Sequence[Row], cost: str) -> None:
    """Write the architectures of the other models on the front of all; for the names of all there is no room."""
    named = in_view(overlay.models, rows, cost)[1]
    points = list(zip(*_places(named, cost, ACCURACY), strict=True))
    label_points(axes, points, [model["name"].split(".")[0] for model in named], is_secondary=True)


def _axis(cost: str, rows: Sequence[Row]) -> str:
    """The name of a cost; that of a latency has the batch it was measured with and says if it is unreliable."""
    if cost != "latency_ms" or "latency_batch_size" not in rows[0]:
        return _AXES[cost]
    unit = "ms, unreliable" if unreliable(rows) else "ms"
    return f"latency of a batch of {rows[0]['latency_batch_size']} ({unit})"


def _places(rows: Sequence[Row], cost: str, metric: str) -> tuple[list[float], list[float]]:
    return [row[cost] for row in rows], [row[metric] for row in rows]


def run(flags: argparse.Namespace) -> None:
    """Run `stitchkit pareto`."""
    if flags.plot:
        check_plot(flags.plot)
    rows, cost = read_rows(flags.ledger), COSTS[flags.cost]
    metric = metric_of(rows, flags.metric)
    front = pareto_front(rows, cost, metric)
    known = compared_beside(flags.ledger, metric)
    add_intervals(rows, known, cost)
    if flags.cost == "latency":
        check_latencies(rows, allowed=flags.allow_unreliable)
    overlay = read_overlay(flags.overlay, [cost], metric) if flags.overlay else None
    print(table(front))
    for note in filter(None, [latency_note(rows), compared_note(rows, metric)]):
        print(note)
    network, uncut = nouns_of(rows)
    number = counted(len(rows), network)
    marks = f"; * marks {plural(uncut)}" if any(map(is_anchor, rows)) else ""
    print(f"the Pareto front{by(metric)} has {len(front)} of {number}{marks}")
    if metric in WITH_INTERVALS:
        print(told_apart_note(front, known, metric))
    if overlay:
        print(f"{verdict(front, overlay.models, cost)} {overlay.remark}")
    if flags.plot:
        shown = counted(len(compared(rows, metric)), network)
        plot(rows, flags.plot, title=shown, cost=cost, overlay=overlay, metric=metric)
        print(f"the plot is {flags.plot}")
