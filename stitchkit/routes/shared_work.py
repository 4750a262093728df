"""The work that several stitches share: stretches of blocks that run only once for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stitchkit.routes.stitch import Step


@dataclass(eq=False)
class Visit:
    """Consecutive blocks of one anchor, run once for all routes that reach them in the same way.

    Args:
        entry: The step where routes enter: a stem, or the stitching layer after the parent's block.
        parent: The previous visit; None if images enter through the stem.
        leaves: Routes leave for another anchor after these blocks, ascending.
        taps: The levels that routes take after these blocks; after the one before the first, right at the entry.
        ends: The stitches that end here; none if all routes continue elsewhere.
        head: The step that ends them.
    """

    entry: Step
    parent: Visit | None = None
    leaves: list[int] = field(default_factory=list)
    taps: dict[int, list[Step]] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    head: Step | None = None

    @property
    def anchor(self) -> str:
        """Label of the anchor."""
        return self.entry.anchor if self.entry.joint is None else self.entry.joint.end

    @property
    def start(self) -> int:
        """First block that runs."""
        return 0 if self.entry.joint is None else self.entry.joint.end_block


def shared_visits(routes: Mapping[int, Iterable[Step]]) -> list[tuple[str, list[Visit]]]:
    """The visits of some stitches in rounds, each through one anchor; visits with the same past are one.

    Args:
        routes: The steps of the stitches, by `cfg_id`.

    Returns:
        The anchor of each round and its visits, by the block where they start. Every visit comes in a later round
        than its parent. An anchor has one round, unless routes lead from it to others and from these to it.
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
                continue
            assert visit is not None, "a route begins with a stem"
            if step.kind == "level":  # where it is taken depends on the whole route, so that it does not part routes
                taps = visit.taps.setdefault(step.index - 1, [])
                taps += [step] if step not in taps else []
            elif step.kind != "block":
                visit.ends.append(cfg_id)
                visit.head = step
    waiting: dict[str, list[Visit]] = {}
    for visit in sorted(known.values(), key=lambda visit: visit.start):
        waiting.setdefault(visit.anchor, []).append(visit)
    rounds: list[tuple[str, list[Visit]]] = []
    done: set[Visit | None] = {None}
    while waiting:
        ready = {anchor: [visit for visit in visits if visit.parent in done] for anchor, visits in waiting.items()}
        # The more visits run together, the less often each block runs. So an anchor waits for all of its visits; in a
        # circle of anchors that wait for each other, the one that loses least by going first does.
        possible = [anchor for anchor in waiting if ready[anchor]]
        anchor = min(possible, key=lambda anchor: (ready[anchor] != waiting[anchor], len(ready[anchor])))
        rounds.append((anchor, ready[anchor]))
        done.update(ready[anchor])
        waiting[anchor] = [visit for visit in waiting[anchor] if visit not in done]
        if not waiting[anchor]:
            del waiting[anchor]
    return rounds
