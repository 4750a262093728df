"""Figures for papers: accuracy over a cost, labels and points that keep clear of each other, files in any format."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import cos, pi, sin
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from stitchkit.display import quantity
from stitchkit.errors import InputError
from stitchkit.files import check_folder_of, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

BLUE, ORANGE, GREEN, PURPLE, RED = "#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756"
TEAL, BROWN, YELLOW = "#72b7b2", "#9d755d", "#eeca3b"

# A file depends only on what it shows.
_UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}

# Where a name may stand: at these distances from its point, in pixels, in these directions; the best come first.
_BESIDE = 20
_AWAY = range(12, 120, 4)
_TURNS = [pi / 8 * eighth for eighth in (2, 6, -2, -6, 4, -4, 0, 8, 1, 7, -1, -7, 3, 5, -3, -5)]
_LEADER = {"arrowstyle": "-", "color": "#555555", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 5}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; its size is in inches."""
    # Imported here, because matplotlib is slow to import. `Figure` without pyplot needs no display and has no global
    # state.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def draw_costs(axes: Axes, *, cost: str, accuracy: str) -> None:
    """Set up axes for accuracy over a cost on a logarithmic scale, with these labels."""
    from matplotlib.ticker import LogLocator, NullFormatter

    # Networks differ by factors in cost; on a linear axis the cheap ones would hide each other.
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: quantity(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=cost, ylabel=accuracy)
    axes.margins(0.07, 0.1)
    axes.grid(alpha=0.3)


def label_points(
    axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], *, is_secondary: bool = False
) -> None:
    """Write names as near to their points as points, lines and other names allow; secondary names are small.

    Call it last: nothing may move afterwards. A thin line leads to a distant name. `adjustText` 1.4 drew names over the
    front and points.
    """
    from matplotlib.text import Text  # slow to import

    dpi = _laid_out(axes).dpi
    look: dict[str, Any] = {"size": "xx-small", "color": "#444444"} if is_secondary else {"weight": "bold"}
    look |= {"ha": "center", "va": "center", "parse_math": False}
    taken: list[Bbox] = [Text.get_window_extent(text) for text in axes.texts]
    for point, name in zip(points, names, strict=True):
        draft = axes.text(*point, name, **look)
        extent = draft.get_window_extent()
        draft.remove()
        x, y = extent.width / 2, extent.height / 2
        offsets = [(away, cos(turn) * (away + x), sin(turn) * (away + y)) for away in _AWAY for turn in _TURNS]
        free = (offset for offset in offsets if _is_clear(axes, extent.translated(*offset[1:]), taken))
        away, across, up = next(free, offsets[0])
        taken.append(extent.translated(across, up))
        label = axes.annotate(
            name, point, (72 / dpi * across, 72 / dpi * up), textcoords="offset points",
            arrowprops=_LEADER if away > _BESIDE else None, **look,
        )  # fmt: skip
        label.set_in_layout(False)  # a long name must not move the axes


def _laid_out(axes: Axes) -> Figure:
    """The figure of axes, which know their place from now on."""
    figure = cast("Figure", axes.figure)
    figure.draw_without_rendering()
    return figure


def _is_clear(axes: Axes, box: Bbox, taken: Sequence[Bbox]) -> bool:
    """Whether a box lies inside the axes and hides no point, line or other box; points behind lines do not matter."""
    from matplotlib.collections import PathCollection  # slow to import

    if not (axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)) or any(map(box.overlaps, taken)):
        return False
    paths = (line.get_transform().transform_path(line.get_path()) for line in axes.lines)
    if any(path.intersects_bbox(box, filled=False) for path in paths):
        return False
    for cloud in (each for each in axes.collections if isinstance(each, PathCollection) and each.zorder > 1):
        middles = cloud.get_offset_transform().transform(cloud.get_offsets())
        radii = np.sqrt(cloud.get_sizes()) / 2 * axes.figure.dpi / 72
        if (np.linalg.norm(middles - middles.clip(box.min, box.max), axis=1) < radii).any():
            return False
    return True


def side_by_side(axes: Axes, x: Sequence[float], y: Sequence[float], *, size: float) -> list[float]:
    """Places along the x axis, as near as possible to their own, where points of a size in pt do not hide each other.

    Call it when the limits of the axes are set.
    """
    if len(x) < 2:
        return list(x)
    step = size * _laid_out(axes).dpi / 72
    places: list[tuple[float, float]] = []
    for across, up in axes.transData.transform(list(zip(x, y, strict=True))):
        shift = 0
        while any((across + shift * step - a) ** 2 + (up - u) ** 2 < (0.99 * step) ** 2 for a, u in places):
            shift = -shift if shift > 0 else 1 - shift  # 0, 1, -1, 2, -2, ...
        places.append((across + shift * step, up))
    axes.autoscale(False)  # points there must not change what they were placed by
    return [float(across) for across, _ in axes.transData.inverted().transform(places)]


def check_plot(path: str | Path) -> None:
    """Check that a plot can be written, before the work that it shows."""
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"plot '{path}' cannot be written: no format '{path.suffix}'; choose .png, .svg or .pdf")
    check_folder_of(path)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a picture; its suffix selects the format."""
    from matplotlib import rc_context

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it reports every font that it shortens
    path = Path(path)
    kind = path.suffix[1:].lower()
    try:
        # Text stays text, in embedded fonts.
        fonts = rc_context({"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "stitchkit"})
        with replacing(path) as draft, fonts:
            figure.savefig(draft, format=kind, metadata=_UNDATED.get(kind))
    except (ValueError, OSError) as error:
        raise InputError(f"plot '{path}' cannot be written: {error}") from error
