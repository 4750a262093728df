"""Drawings of composed networks: fragments from top to bottom, a column per network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil
from typing import NamedTuple

from stitchkit.display import counted, quantity
from stitchkit.measure.figure import BLUE, BROWN, GREEN, ORANGE, PURPLE, RED, TEAL, YELLOW

_COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, TEAL, BROWN, YELLOW)
_BOX, _HEIGHT, _GAP, _EDGE, _INSET, _TOP = 250, 62, 56, 24, 12, 96
_CANVAS = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" \
viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">
<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">\
<path d="M0 0 8 4 0 8z" fill="#333"/></marker></defs>
<rect width="{width}" height="{height}" fill="white"/>
{parts}
</svg>
"""
_NARROW, _WIDE = " !'(),-./:;I[]fijlrt|", "mwMW"


@dataclass(frozen=True)
class FragmentSummary:
    """A fragment of a composed network, with the joint before it in words.

    The shape of its output and its cost are for one image; the cost includes that of the joint.
    """

    network: str
    index: int
    count: int
    score: float
    joint: str
    shape: tuple[int, ...]
    macs: int
    params: int


class Text(NamedTuple):
    """A line of text in a drawing; `x` is its left end and `y` its baseline."""

    x: float
    y: float
    words: str
    size: int = 13
    weight: str = "normal"
    colour: str = "#111"

    @property
    def right(self) -> float:
        """Its largest right end: viewers use different sans-serif fonts, so this is for a wide one, DejaVu Sans."""
        return self.x + self.size * sum(map(_em, self.words)) * (1 if self.weight == "bold" else 0.9)

    def __str__(self) -> str:
        return (
            f'<text x="{self.x:g}" y="{self.y:g}" font-size="{self.size}" font-weight="{self.weight}" '
            f'fill="{self.colour}">{escape(self.words, quote=False)}</text>'
        )


def draw(steps: Sequence[FragmentSummary], input_size: tuple[int, int, int], score: float) -> str:
    """A composed network with this score, for images `(C, H, W)`, as SVG as wide as its longest text needs."""
    networks = list(dict.fromkeys(step.network for step in steps))
    box = max([_BOX, *(ceil(text.right + _INSET) for step in steps for text in _about(step, 0, 0))])
    columns = {network: _EDGE + number * (box + _EDGE) for number, network in enumerate(networks)}
    heading = _heading(steps, input_size, score)
    parts, right = [*map(str, heading)], max([columns[networks[-1]] + box, *(text.right for text in heading)])
    for number, step in enumerate(steps):
        x, y = columns[step.network], _TOP + number * (_HEIGHT + _GAP)
        if number:
            x1, x2 = columns[steps[number - 1].network] + box / 2, x + box / 2
            words = f"score {step.score:.3f}" + (f", {step.joint}" if step.joint else "")
            clear = 4 if x1 == x2 else -6 if x1 < x2 else 14  # above an arrow to the right, below one to the left
            label = Text((x1 + x2) / 2 + 8, y - _GAP / 2 + clear, words, size=12)
            right = max(right, label.right)
            parts += [
                f'<line x1="{x1:g}" y1="{y - _GAP:g}" x2="{x2:g}" y2="{y:g}" stroke="#333" stroke-width="1.3" '
                'marker-end="url(#tip)"/>',
                f'<g stroke="white" stroke-width="4" paint-order="stroke">{label}</g>',
            ]
        colour = _COLOURS[networks.index(step.network) % len(_COLOURS)]
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{box:g}" height="{_HEIGHT}" rx="6" fill="{colour}" fill-opacity="0.16" '
            f'stroke="{colour}" stroke-width="1.5"/>'
        )
        parts += map(str, _about(step, x, y))
    height = _TOP + len(steps) * (_HEIGHT + _GAP) + 20
    width = max(ceil(right) + _EDGE, 2 * (_EDGE + _BOX))
    return _CANVAS.format(width=width, height=height, parts="\n".join(parts))


def _heading(steps: Sequence[FragmentSummary], input_size: tuple[int, int, int], score: float) -> list[Text]:
    macs, params = sum(step.macs for step in steps), sum(step.params for step in steps)
    givers = counted(len({step.network for step in steps}), "network")
    title = f"{counted(len(steps), 'fragment')} of {givers}, score {score:.3f}"
    about = f"{quantity(macs)} MACs, {quantity(params)} parameters, images {_shape(input_size)}"
    return [Text(_EDGE, 30, title, size=17, weight="bold"), Text(_EDGE, 52, about, colour="#555")]


def _about(step: FragmentSummary, x: float, y: float) -> list[Text]:
    name = f"{step.network}[{step.index}] of {counted(step.count, 'fragment')}"
    cost = f"{quantity(step.macs)} MACs, {quantity(step.params)} parameters"
    return [
        Text(x + _INSET, y + 21, name, weight="bold"),
        Text(x + _INSET, y + 38, cost, colour="#444", size=12),
        Text(x + _INSET, y + 54, f"gives {_shape(step.shape)}", colour="#444", size=12),
    ]


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _em(char: str) -> float:
    """The width of a bold character, in sizes of the font."""
    if char in _NARROW:
        return 0.5
    if char in _WIDE or not char.isascii() or not (char.isalnum() or char == "_"):
        return 1.12
    return 0.88 if char.isupper() else 0.72
