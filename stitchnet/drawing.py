"""Drawings of composed networks: fragments from top to bottom, one column a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from stitchkit.measure.pareto import quantity

if TYPE_CHECKING:
    from stitchnet.net import Step

_COLOURS = ("#4c78a8", "#e45756", "#54a24b", "#b279a2", "#f58518", "#72b7b2", "#9d755d", "#eeca3b")
_BOX, _HEIGHT, _GAP, _EDGE = 250, 62, 56, 24


def draw(steps: Sequence[Step], input_size: tuple[int, int, int], score: float) -> str:
    """A composed network as SVG.

    Args:
        steps: What it consists of.
        input_size: `(C, H, W)` of its images.
        score: Product of the scores of its joints.
    """
    networks = list(dict.fromkeys(step.network for step in steps))
    columns = {network: _EDGE + number * (_BOX + _EDGE) for number, network in enumerate(networks)}
    width = max(2 * _EDGE + _BOX * 2, _EDGE + len(networks) * (_BOX + _EDGE))
    top = 96
    height = top + len(steps) * (_HEIGHT + _GAP) + 20
    macs, params = sum(step.macs for step in steps), sum(step.params for step in steps)
    givers = "one network" if len(networks) == 1 else f"{len(networks)} networks"
    title = f"{len(steps)} fragments of {givers}, score {score:.3f}"
    about = f"{quantity(macs)} MACs, {quantity(params)} parameters, images {_shape(input_size)}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#333"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(_EDGE, 30, title, size=17, weight="bold"),
        _text(_EDGE, 52, about, colour="#555"),
    ]
    for number, step in enumerate(steps):
        y = top + number * (_HEIGHT + _GAP)
        x = columns[step.network]
        if number:
            parts += _arrow(columns[steps[number - 1].network] + _BOX / 2, y - _GAP, x + _BOX / 2, y, step)
        parts += _box(x, y, step, _COLOURS[networks.index(step.network) % len(_COLOURS)])
    return "\n".join([*parts, "</svg>\n"])


def _box(x: float, y: float, step: Step, colour: str) -> list[str]:
    name = f"{step.network}, fragment {step.index + 1} of {step.count}"
    cost = f"{quantity(step.macs)} MACs, {quantity(step.params)} parameters"
    return [
        f'<rect x="{x}" y="{y}" width="{_BOX}" height="{_HEIGHT}" rx="6" fill="{colour}" fill-opacity="0.16" '
        f'stroke="{colour}" stroke-width="1.5"/>',
        _text(x + 12, y + 21, name, weight="bold"),
        _text(x + 12, y + 38, cost, colour="#444", size=12),
        _text(x + 12, y + 54, f"gives {_shape(step.shape)}", colour="#444", size=12),
    ]


def _arrow(x1: float, y1: float, x2: float, y2: float, step: Step) -> list[str]:
    label = f"score {step.score:.3f}" + (f", {step.joint}" if step.joint else "")
    line = f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#333" stroke-width="1.3" marker-end="url(#tip)"/>'
    middle = (x1 + x2) / 2
    words = _text(middle + 8, (y1 + y2) / 2 + 4, label, size=12)
    halo = f'<g stroke="white" stroke-width="4" paint-order="stroke">{words}</g>'
    return [line, halo]


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _text(x: float, y: float, text: str, *, size: int = 13, weight: str = "normal", colour: str = "#111") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{colour}">{escape(text)}</text>'
