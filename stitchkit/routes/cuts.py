"""Where two anchors of any depths are at the same relative height, and the directions of the joints there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from stitchkit.errors import InputError
from stitchkit.routes.rules import BlockPair, Shape, blocks_of

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
