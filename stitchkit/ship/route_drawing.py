"""The drawing of a route: one lane per anchor and one box per block, filled if it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from stitchkit.routes import Segment, Stitch

COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#eeca3b")
"""The color of each anchor, in order."""

_LANE = 26
_BOX = 14
_WIDTH = 340
_LEFT = 8
_TOP = 16


def depths_of(stitches: Iterable[Stitch]) -> dict[str, int]:
    """Blocks of each anchor as far as the stitches show them, in the order in which the anchors appear."""
    depths: dict[str, int] = {}
    for stitch in stitches:
        for segment in stitch.segments:
            depths[segment.anchor] = max(depths.get(segment.anchor, 0), segment.stop)
    return depths


def draw_route(stitch: Stitch, depths: Mapping[str, int]) -> str:
    """The route as an SVG with only shapes and escaped labels, given the number of blocks of each anchor."""
    lanes = {anchor: number for number, anchor in enumerate(depths)}
    pitch = min(_BOX + 6, _WIDTH / max(depths.values()))
    width, height = _LEFT + pitch * max(depths.values()) + 4, (_LANE + _TOP) * len(lanes)
    boxes = [_box(anchor, block, lanes, pitch, stitch) for anchor in lanes for block in range(depths[anchor])]
    labels = [
        f'<text x="{_LEFT}" y="{_top(number) - 4}" fill="{_color(number)}">{escape(anchor)}</text>'
        for anchor, number in lanes.items()
    ]
    joints = [
        _joint(front, end, lanes, pitch) for front, end in zip(stitch.segments, stitch.segments[1:], strict=False)
    ]
    # Pages embed the picture as HTML, and names come from ledgers that a stranger may have written.
    name = escape(stitch.name, quote=True)
    return (
        f'<svg class="route" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}" role="img" '
        f'aria-label="{name}" xmlns="http://www.w3.org/2000/svg">{"".join([*joints, *labels, *boxes])}</svg>'
    )


def colors_of(anchors: Iterable[str]) -> dict[str, str]:
    """The color of each anchor in a drawing, from cheap to costly."""
    return {anchor: _color(number) for number, anchor in enumerate(anchors)}


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _top(lane: int) -> int:
    return _TOP + (_LANE + _TOP) * lane


def _box(anchor: str, block: int, lanes: Mapping[str, int], pitch: float, stitch: Stitch) -> str:
    runs = any(part.anchor == anchor and part.start <= block < part.stop for part in stitch.segments)
    color = _color(lanes[anchor])
    fill = f'fill="{color}"' if runs else f'fill="#fff" stroke="{color}" stroke-opacity=".35"'
    x, size = _LEFT + pitch * block, pitch * 0.72
    return f'<rect x="{x:.1f}" y="{_top(lanes[anchor])}" width="{size:.1f}" height="{_BOX}" rx="2.5" {fill}/>'


def _joint(front: Segment, end: Segment, lanes: Mapping[str, int], pitch: float) -> str:
    """The way from the middle of the last box of one segment to that of the first box of the next."""
    (x1, y1), (x2, y2) = (
        (_LEFT + pitch * (block + 0.36), _top(lanes[anchor]) + _BOX / 2)
        for anchor, block in ((front.anchor, front.stop - 1), (end.anchor, end.start))
    )
    return f'<line x1="{x1:.1f}" y1="{y1}" x2="{x2:.1f}" y2="{y2}" stroke="#333" stroke-width="2"/>'
