"""What several stitches have in common: the stretches of blocks that each need to run only once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

from stitchkit.routes.stitch import Joint, Stitch


@dataclass(eq=False)
class Visit:
    """Consecutive blocks of one anchor, run once for all routes that came there in the same way.

    Args:
        anchor: Label of the anchor.
        start: First block that runs.
        parent: The visit before; None where images enter through the stem.
        joint: How the parent was left for this one; None with the stem.
        leaves: Blocks after which routes leave for another anchor, ascending.
        cfg_id: The stitch that ends here, through the head; None where all routes continue elsewhere.
    """

    anchor: str
    start: int
    parent: Visit | None = None
    joint: Joint | None = None
    leaves: list[int] = field(default_factory=list)
    cfg_id: int | None = None


def shared_visits(stitches: Mapping[int, Stitch]) -> dict[str, list[Visit]]:
    """The visits of some stitches by anchor; visits with the same past are one.

    Args:
        stitches: The stitches by `cfg_id`.

    Returns:
        For each anchor its visits, by the block at which they start. Anchors are in an order in which every visit
        comes after its parent.
    """
    known: dict[tuple[tuple[Joint, ...], str], Visit] = {}
    for cfg_id, stitch in stitches.items():
        visit = known.setdefault(((), stitch.segments[0].anchor), Visit(stitch.segments[0].anchor, 0))
        for number, joint in enumerate(stitch.joints, start=1):
            if joint.front_block not in visit.leaves:
                visit.leaves = sorted([*visit.leaves, joint.front_block])
            past = stitch.joints[:number]
            visit = known.setdefault((past, joint.end), Visit(joint.end, joint.end_block, visit, joint))
        visit.cfg_id = cfg_id
    by_anchor: dict[str, list[Visit]] = {}
    for visit in sorted(known.values(), key=lambda visit: visit.start):
        by_anchor.setdefault(visit.anchor, []).append(visit)
    return {anchor: by_anchor[anchor] for anchor in _in_order(stitches)}


def _in_order(stitches: Mapping[int, Stitch]) -> list[str]:
    """Anchors such that routes only go forward."""
    order: TopologicalSorter[str] = TopologicalSorter()
    for stitch in stitches.values():
        order.add(stitch.segments[0].anchor)
        for joint in stitch.joints:
            order.add(joint.end, joint.front)
    return list(order.static_order())
