"""The work that several stitches share: stretches of blocks that run only once for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

from stitchkit.routes.stitch import Step


@dataclass(eq=False)
class Visit:
    """Consecutive blocks of one anchor, run once for all routes that reach them in the same way.

    Args:
        entry: The step through which routes enter: a stem, or the stitching layer after the parent's block.
        parent: The previous visit; None if images enter through the stem.
        leaves: Blocks after which routes leave for another anchor, ascending.
        cfg_id: The stitch that ends here; None if all routes continue elsewhere.
        head: The step that ends it.
    """

    entry: Step
    parent: Visit | None = None
    leaves: list[int] = field(default_factory=list)
    cfg_id: int | None = None
    head: Step | None = None

    @property
    def anchor(self) -> str:
        """Label of the anchor."""
        return self.entry.anchor if self.entry.joint is None else self.entry.joint.end

    @property
    def start(self) -> int:
        """First block that runs."""
        return 0 if self.entry.joint is None else self.entry.joint.end_block


def shared_visits(routes: Mapping[int, Iterable[Step]]) -> dict[str, list[Visit]]:
    """The visits of some stitches by anchor; visits with the same past are one.

    Args:
        routes: The steps of the stitches, by `cfg_id`.

    Returns:
        The visits of each anchor, by the block at which they start. Anchors are ordered so that every visit comes
        after its parent.
    """
    # The stem and the layers that a route has passed identify a visit: the blocks between them follow from these.
    known: dict[tuple[Step, ...], Visit] = {}
    for cfg_id, steps in routes.items():
        past: tuple[Step, ...] = ()
        visit: Visit | None = None
        for step in steps:
            if step.kind in ("stem", "layer"):
                past = (*past, step)
                before, visit = visit, known.setdefault(past, Visit(step, visit))
                if before is not None and step.index - 1 not in before.leaves:
                    before.leaves = sorted([*before.leaves, step.index - 1])
            elif step.kind != "block":
                assert visit is not None, "a head follows blocks"
                visit.cfg_id, visit.head = cfg_id, step
    by_anchor: dict[str, list[Visit]] = {}
    for visit in sorted(known.values(), key=lambda visit: visit.start):
        by_anchor.setdefault(visit.anchor, []).append(visit)
    # Routes never return to an anchor, so the anchors have an order, in which each can run all of its visits in one go.
    order: TopologicalSorter[str] = TopologicalSorter()
    for visit in known.values():
        order.add(visit.anchor, *([] if visit.parent is None else [visit.parent.anchor]))
    return {anchor: by_anchor[anchor] for anchor in order.static_order()}
