"""The drawing of a route: one lane per anchor and one box per block, filled if it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from itertools import cycle

from stitchkit.measure.figure import BLUE, BROWN, GREEN, ORANGE, PURPLE, RED, TEAL, YELLOW
from stitchkit.routes import Stitch

COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, BROWN, YELLOW)
"""The color of each anchor, in order."""

_LANE, _TOP, _LEFT, _WIDTH, _BOX = 42, 16, 8, 340, 14


def depths_of(stitches: Iterable[Stitch]) -> dict[str, int]:
    """Blocks of each anchor as far as the stitches show them, with anchors in the order of appearance."""
    depths: dict[str, int] = {}
    for stitch in stitches:
        for segment in stitch.segments:
            depths[segment.anchor] = max(depths.get(segment.anchor, 0), segment.stop)
    return depths


def colors_of(anchors: Iterable[str]) -> dict[str, str]:
    """The color of each anchor in a drawing, from cheap to costly."""
    return dict(zip(anchors, cycle(COLORS), strict=False))


def draw_route(stitch: Stitch, depths: Mapping[str, int]) -> str:
    """The route as an SVG with only shapes and labels, given the number of blocks of each anchor."""
    pitch = min(_BOX + 6, _WIDTH / max(depths.values()))
    tops = {anchor: _TOP + _LANE * number for number, anchor in enumerate(depths)}
    shapes = []
    for joint in stitch.joints:  # from the middle of the last box of one segment to that of the first box of the next
        x1, x2 = (_LEFT + pitch * (block + 0.36) for block in (joint.front_block, joint.end_block))
        y1, y2 = (tops[anchor] + _BOX / 2 for anchor in (joint.front, joint.end))
        shapes.append(f'<line x1="{x1:.1f}" y1="{y1}" x2="{x2:.1f}" y2="{y2}" stroke="#333" stroke-width="2"/>')
    runs = {(part.anchor, block) for part in stitch.segments for block in range(part.start, part.stop)}
    for anchor, color in colors_of(depths).items():
        shapes.append(f'<text x="{_LEFT}" y="{tops[anchor] - 4}" fill="{color}">{anchor}</text>')
        for block in range(depths[anchor]):
            outlined = f'fill="#fff" stroke="{color}" stroke-opacity=".35"'
            fill = f'fill="{color}"' if (anchor, block) in runs else outlined
            box = f'x="{_LEFT + pitch * block:.1f}" y="{tops[anchor]}" width="{pitch * 0.72:.1f}" height="{_BOX}"'
            shapes.append(f'<rect {box} rx="2.5" {fill}/>')
    width, height = _LEFT + pitch * max(depths.values()) + 4, _LANE * len(depths)
    # Pages embed the picture as HTML. Labels have only harmless characters, which `Segment` checks; names have arrows.
    return (
        f'<svg class="route" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}" role="img" '
        f'aria-label="{escape(stitch.name)}" xmlns="http://www.w3.org/2000/svg">{"".join(shapes)}</svg>'
    )
