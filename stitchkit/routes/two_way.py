"""The rules for anchors of any depths: joints at the same relative height, in either direction, once or repeatedly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle, islice, pairwise
from math import comb
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

_MOST_ROUTES = 100_000
Directions = Literal["up", "down", "both"]


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
    cuts: list[BlockPair] = []
    for stage in stages:
        shares = min(front.depths[stage], end.depths[stage])
        for share in range(1, shares + 1):
            leave, enter = (
                sum(anchor.depths[:stage]) + -(-share * anchor.depths[stage] // shares) for anchor in (front, end)
            )
            cuts.append(BlockPair(leave - 1, enter, len(cuts)))
    return cuts


def cuts_between(front: Shape, end: Shape, stages: Sequence[int]) -> list[BlockPair]:
    """The cuts where a route can enter the end."""
    cuts = [cut for cut in every_cut(front, end, stages) if cut.end < sum(end.depths)]
    if not cuts:
        raise InputError(
            f"nothing can be joined in the stages {list(stages)} of {blocks_of((front, end))}: after a joint at least "
            "one block must follow; name more stages in 'stages', or choose other anchors"
        )
    return cuts


@dataclass(frozen=True)
class TwoWay:
    """Routes between two anchors that switch at several cuts, wherever both have run the same share of a stage.

    In each stitched stage, there is a cut after every block of the shallower anchor; in the deeper one it lies after
    the same share of the blocks, rounded up. A route crosses between the anchors only at cuts, so it neither repeats
    nor skips work. The end of a stage is a cut too, unless no block of the entered anchor follows. Every joint has a
    stitching layer of its own.

    Stitches are ordered pair of anchors by pair, then by the number of switches; of one number, those that end in the
    costlier anchor come first, both in the order of their cuts. Routes through three or more anchors follow; they keep
    to one direction.

    The published numbering counts a route that does not exist: after all blocks of the cheaper anchor, it would enter
    the costlier one before its head. No stitch has its `cfg_id`, but its stitching layer exists: in dense prediction it
    maps the last features of the cheaper anchor.

    Args:
        max_switches: Most switches between the two anchors of a route.
        directions: `both`; or `up`, only into the costlier, or `down`, only into the cheaper anchor, at one switch.
        nearest: Join only neighbouring anchors; otherwise every pair of anchors, with routes through three or more.
        stages: The stages to stitch, ascending; by default those of the anchors' families.

    Source: Stitched ViTs are Flexible Vision Backbones, and its released code for numbers and layers. Other numbers of
    switches or anchors, stages, and depths that are no multiples of each other, are ours.
    """

    max_switches: int = 2
    directions: Directions = "both"
    nearest: bool = True
    stages: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_stages(self.stages)
        if self.max_switches < 1:
            raise InputError(f"max_switches is {self.max_switches}; it must be at least 1")
        if self.max_switches > 1 and self.directions != "both":
            raise InputError(
                f"directions is '{self.directions}', but routes of {self.max_switches} switches go both ways; set "
                "'max_switches' to 1, or omit 'directions'"
            )

    def plan(self, anchors: Sequence[Shape]) -> tuple[list[Stitch | None], dict[Joint, LayerPath]]:
        """The stitches that follow the anchors, in the order above, and the layer of each joint."""
        stages = stages_to_stitch(anchors, self.stages)
        couples: list[tuple[Shape, ...]] = list(pairwise(anchors) if self.nearest else combinations(anchors, 2))
        chains = [] if self.nearest else [c for size in range(3, len(anchors) + 1) for c in combinations(anchors, size)]
        ways: dict[tuple[str, str], list[BlockPair]] = {}
        layers: dict[Joint, LayerPath] = {}
        for number, (front, end) in enumerate(directed(couples, self.directions)):
            ways[front.label, end.label] = cuts = cuts_between(front, end, stages)
            # Published weights have a layer at every cut into the costlier anchor, even if no block follows.
            for cut in every_cut(front, end, stages) if (front, end) in couples else cuts:
                layers[Joint(front.label, cut.front, end.label, cut.end)] = (number, cut.layer)
        stitches: list[Stitch | None] = []
        for cheap, costly in couples:
            stitches += self._between(cheap, costly, len(every_cut(cheap, costly, stages)), ways)
        for chain in directed(chains, self.directions):
            windows = [ways[front.label, end.label] for front, end in pairwise(chain)]
            stitches += [route(chain, cuts) for cuts in chained(windows)]
        return stitches, layers

    def _between(
        self, cheap: Shape, costly: Shape, num_cuts: int, ways: Mapping[tuple[str, str], Sequence[BlockPair]]
    ) -> Iterator[Stitch | None]:
        """The routes between two anchors in the order of their numbers; None stands for the one that does not exist."""
        numbers = range(1, min(self.max_switches, num_cuts) + 1)  # every switch takes a cut
        count = sum(2 * comb(num_cuts, switches) for switches in numbers)
        if count > _MOST_ROUTES:
            raise InputError(
                f"max_switches is {self.max_switches}, which gives more than {_MOST_ROUTES:,} routes between "
                f"{blocks_of((cheap, costly))}; choose a smaller number"
            )
        for switches in numbers:
            for ending, other in ((costly, cheap), (cheap, costly)):
                chain = (*islice(cycle((ending, other)), switches + 1),)[::-1]
                tables = [ways.get((front.label, end.label), ()) for front, end in pairwise(chain)]
                for chosen in combinations(range(num_cuts), switches):
                    cuts = [table[cut] for table, cut in zip(tables, chosen, strict=True) if cut < len(table)]
                    if len(cuts) == switches:
                        yield route(chain, cuts)
                    elif switches == 1 and tables[0] and ending is costly:
                        yield None


@dataclass(frozen=True)
class Proportional:
    """The routes of `TwoWay` that switch once between two anchors, numbered without a hole.

    Stitches are ordered pair of anchors by pair; of each pair, those into the costlier anchor come first, then those
    into the cheaper one, both from the first cut to the last. Routes through three or more anchors follow.

    Args:
        directions: `up`: from a cheaper anchor into a costlier one; `down`: the reverse; `both`: either.
        nearest: Join only neighbouring anchors; otherwise every pair of anchors, with routes through three or more that
            keep to one direction.
        stages: The stages to stitch, ascending; by default those of the anchors' families.

    Source: Stitched ViTs are Flexible Vision Backbones (two-way stitching); these are its routes with one
    joint; stages, and depths that are no multiples of each other, are ours.
    """

    directions: Directions = "up"
    nearest: bool = True
    stages: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_stages(self.stages)

    def plan(self, anchors: Sequence[Shape]) -> tuple[Sequence[Stitch], dict[Joint, LayerPath]]:
        """The stitches that follow the anchors, in the order above, and the layer of each joint."""
        numbered, layers = TwoWay(1, self.directions, self.nearest, self.stages).plan(anchors)
        stitches = [stitch for stitch in numbered if stitch is not None]
        used = {joint for stitch in stitches for joint in stitch.joints}
        return stitches, {joint: path for joint, path in layers.items() if joint in used}
