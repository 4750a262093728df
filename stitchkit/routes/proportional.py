"""The rule for anchors of any depths: joints at the same relative height, in either direction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

from stitchkit.errors import InputError
from stitchkit.routes.rules import (
    BlockPair,
    LayerPath,
    Shape,
    blocks_of,
    chained,
    check_stages,
    route,
    stages_to_stitch,
)
from stitchkit.routes.stitch import Joint, Stitch

Directions = Literal["up", "down", "both"]


@dataclass(frozen=True)
class Proportional:
    """Two anchors are joined wherever both have run the same share of a stage.

    In each stitched stage, there is a cut after every block of the shallower anchor; in the deeper one it lies after
    the same share of the blocks, rounded up. A route crosses from one anchor to the other at one cut, so it neither
    repeats nor skips work. The end of a stage is a cut too, unless no block of the entered anchor follows. Every joint
    has a stitching layer of its own.

    Stitches are ordered pair of anchors by pair; of each pair, those into the costlier anchor come first, then those
    into the cheaper one, both from the first cut to the last. Routes through three or more anchors follow.

    Args:
        directions: `up`: from a cheaper anchor into a costlier one; `down`: the reverse; `both`: either.
        nearest: Join only neighbouring anchors; otherwise every pair of anchors, with routes through three or more that
            keep to one direction.
        stages: The stages to stitch, ascending; by default those of the anchors' families.

    Source: Stitched ViTs are Flexible Vision Backbones (two-way stitching), of which these are the routes with one
    joint; stages, and depths that are no multiples of each other, are ours.
    """

    directions: Directions = "up"
    nearest: bool = True
    stages: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_stages(self.stages)

    def plan(self, anchors: Sequence[Shape]) -> tuple[Sequence[Stitch], dict[Joint, LayerPath]]:
        """The stitches that follow the anchors, in the order above, and the layer of each joint."""
        stages = stages_to_stitch(anchors, self.stages)
        couples: list[tuple[Shape, ...]] = list(pairwise(anchors) if self.nearest else combinations(anchors, 2))
        longer = [] if self.nearest else range(3, len(anchors) + 1)
        stitches: list[Stitch] = []
        layers: dict[Joint, LayerPath] = {}
        cuts: dict[tuple[str, str], list[BlockPair]] = {}
        for number, (front, end) in enumerate(directed(couples, self.directions)):
            cuts[front.label, end.label] = cuts_between(front, end, stages)
            for pair in cuts[front.label, end.label]:
                stitches.append(route((front, end), [pair]))
                layers[stitches[-1].joints[0]] = (number, pair.layer)
        # Longer routes need no further weights: they use the layers of their pairs of anchors.
        for chain in directed((c for size in longer for c in combinations(anchors, size)), self.directions):
            windows = [cuts[front.label, end.label] for front, end in pairwise(chain)]
            stitches += [route(chain, pairs) for pairs in chained(windows)]
        return stitches, layers


def directed(chains: Iterable[tuple[Shape, ...]], directions: Directions) -> Iterator[tuple[Shape, ...]]:
    """Chains of anchors, from cheap to costly, in some directions."""
    for chain in chains:
        if directions != "down":
            yield chain
        if directions != "up":
            yield chain[::-1]


def every_cut(front: Shape, end: Shape, stages: Sequence[int]) -> list[BlockPair]:
    """The last block before and the first block after every cut, counted over all stages.

    After the last cut, no block may follow: its first block is then the depth of the end.
    """
    found: list[BlockPair] = []
    for stage in stages:
        shares = min(front.depths[stage], end.depths[stage])
        for share in range(1, shares + 1):
            leave, enter = (
                sum(anchor.depths[:stage]) + -(-share * anchor.depths[stage] // shares) for anchor in (front, end)
            )
            found.append(BlockPair(leave - 1, enter, len(found)))
    return found


def cuts_between(front: Shape, end: Shape, stages: Sequence[int]) -> list[BlockPair]:
    """The cuts at which a route can enter the end."""
    cuts = [cut for cut in every_cut(front, end, stages) if cut.end < sum(end.depths)]
    if not cuts:
        raise InputError(
            f"nothing can be joined in the stages {list(stages)} of {blocks_of((front, end))}: after a joint at least "
            "one block must follow; name more stages in 'stages', or choose other anchors"
        )
    return cuts
