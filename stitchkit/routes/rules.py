"""What a rule is, and the published one: where anchors may be joined, and which joints share a stitching layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple, Protocol

from stitchkit.errors import InputError
from stitchkit.routes.stitch import Joint, Segment, Stitch

LayerPath = tuple[int, ...]
"""The place of a stitching layer in the published key names.

(pair of anchors, layer) for anchors of one stage, (index among the stitched stages, pair, layer) for others. A
proportional rule counts the cuts of all stages together, so its places are (pair, layer) for all anchors.
"""


_WAY_OUT = 'set "rule": "proportional", which joins any depths'


class Shape(Protocol):
    """The part of an anchor that a rule sees: no weights, so that a space is built in milliseconds."""

    @property
    def label(self) -> str:
        """Its name in stitches."""

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks per stage."""

    @property
    def stitched_stages(self) -> tuple[int, ...]:
        """The stages that its family stitches by default."""


class Rule(Protocol):
    """Where anchors may be joined."""

    def plan(self, anchors: Sequence[Shape]) -> tuple[Sequence[Stitch | None], dict[Joint, LayerPath]]:
        """The stitches that follow the anchors, in an order that never changes, and the layer of each joint.

        None leaves out a `cfg_id`.
        """


class BlockPair(NamedTuple):
    """Two joined blocks: the route leaves after `front` and enters before `end`, through layer `layer`."""

    front: int
    end: int
    layer: int


def check_stages(stages: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Return the stages to stitch if they ascend from 0 or later."""
    if stages is not None and (not stages or list(stages) != sorted(set(stages)) or stages[0] < 0):
        raise InputError(f"{list(stages)} are not stages in ascending order; write, for example, [0, 1, 2]")
    return stages


def stages_to_stitch(anchors: Sequence[Shape], stages: tuple[int, ...] | None) -> tuple[int, ...]:
    """The given stages, which all anchors must have, or those that all of the anchors' families stitch."""
    stages = stages or tuple(sorted(set.intersection(*(set(anchor.stitched_stages) for anchor in anchors))))
    if not stages:
        listed = ", ".join(f"{anchor.label} at {list(anchor.stitched_stages) or 'none'}" for anchor in anchors)
        raise InputError(
            f"the anchors have no usually stitched stage in common: {listed}; the blocks are: "
            f'{blocks_of(anchors)}; name stages in a configuration, as in "stages": [1, 2], or choose other anchors'
        )
    common = min(len(anchor.depths) for anchor in anchors)
    if stages[-1] >= common:
        raise InputError(
            f"stages is {list(stages)}, but the anchors have the stages 0 to {common - 1} in common; "
            f"the blocks are: {blocks_of(anchors)}"
        )
    return stages


@dataclass(frozen=True)
class SlidingWindow:
    """A window slides over the blocks of two anchors and joins the pairs of blocks inside it.

    Anchors of one stage must have equal depth. Anchors of several stages are joined inside these; there, stitches only
    skip ahead, and stages of different depth are joined by `unpaired`.

    Args:
        kernel_size: Blocks in a window; in anchors of several stages, a larger window than a stage covers the stage.
        stride: Blocks between the starts of neighbouring windows.
        nearest: Join only neighbouring anchors; otherwise every pair of anchors, with routes through three or more.
        stages: The stages to stitch, ascending; by default those of the anchors' families.

    Source: SN-Net, sections 3.2 and 3.3, and the released code for Swin, ResNet and LeViT.
    """

    kernel_size: int = 2
    stride: int = 1
    nearest: bool = True
    stages: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for key, value in (("stitch_kernel_size", self.kernel_size), ("stitch_stride", self.stride)):
            if value < 1:
                raise InputError(f"{key} is {value}; it must be at least 1 block")
        check_stages(self.stages)

    def plan(self, anchors: Sequence[Shape]) -> tuple[Sequence[Stitch], dict[Joint, LayerPath]]:
        """The stitches that follow the anchors, in the published order, and the layer of each joint."""
        staged = any(len(anchor.depths) > 1 for anchor in anchors)
        if staged and not self.nearest:
            raise InputError(
                "nearest_stitching is false, which windows define only for anchors of one stage; remove it for "
                f"{blocks_of(anchors)}, or {_WAY_OUT}"
            )
        stages = stages_to_stitch(anchors, self.stages) if staged else self._whole(anchors)
        # Only from a cheaper anchor into a costlier one: the paper's fast-to-slow direction.
        couples = list(pairwise(anchors) if self.nearest else combinations(anchors, 2))
        stitches: list[Stitch] = []
        layers: dict[Joint, LayerPath] = {}
        # Stage outside, couple inside: the order of the published `cfg_id`. Released keys count only the stitched
        # stages, as `number` does.
        for number, stage in enumerate(stages):
            for couple, (front, end) in enumerate(couples):
                leave, enter = (sum(anchor.depths[:stage]) for anchor in (front, end))
                for i, j, layer in self._pairs(front, end, stage, ahead=staged):
                    # A rule counts blocks within the stage, a route over all stages.
                    stitch = route((front, end), [BlockPair(leave + i, enter + j, layer)])
                    layers[stitch.joints[0]] = (number, couple, layer) if staged else (couple, layer)
                    stitches.append(stitch)
        if not self.nearest:
            # Longer routes need no further weights: they use the layers of their pairs of anchors.
            window = self._pairs(anchors[0], anchors[1], 0, ahead=False)
            for size in range(3, len(anchors) + 1):
                for chain in combinations(anchors, size):
                    stitches += [route(chain, pairs) for pairs in chained([window] * (size - 1))]
        return stitches, layers

    def _whole(self, anchors: Sequence[Shape]) -> tuple[int, ...]:
        """The only stage of anchors that the window fits as a whole."""
        stages_to_stitch(anchors, self.stages)
        depth = anchors[0].depths[0]
        if any(anchor.depths != (depth,) for anchor in anchors):
            raise InputError(
                f"windows join anchors of one stage only at equal depth, but the blocks are: {blocks_of(anchors)}; "
                f"{_WAY_OUT}, or choose anchors of the same depth"
            )
        if self.kernel_size > depth:
            raise InputError(
                f"stitch_kernel_size is {self.kernel_size}, more than the {depth} blocks of an anchor; "
                f"choose 1 to {depth}"
            )
        return (0,)

    def _pairs(self, front: Shape, end: Shape, stage: int, *, ahead: bool) -> list[BlockPair]:
        # A route that entered at the same or an earlier block would repeat work of the front. The published spaces of
        # several stages leave such routes out, unlike those of one stage.
        if front.depths[stage] == end.depths[stage]:
            pairs = paired(end.depths[stage], kernel_size=self.kernel_size, stride=self.stride, ahead=ahead)
        else:
            pairs = unpaired(front.depths[stage], end.depths[stage])
        if not (found := list(pairs)):
            raise InputError(
                f"nothing can be joined in stage {stage} of {blocks_of((front, end))} with stitch_kernel_size "
                f"{self.kernel_size}: a stitch enters at a later block than the one it leaves, so a stage and a "
                "window need two blocks, and an end needs at least as many as its front; remove the stage "
                f"from 'stages', or {_WAY_OUT}"
            )
        return found


def paired(depth: int, *, kernel_size: int, stride: int, ahead: bool = False) -> Iterator[BlockPair]:
    """The block pairs of a window that slides over two stacks of `depth` blocks.

    Every window adds the pairs of its blocks that no earlier window had; these pairs share a new stitching layer.

    Args:
        depth: Blocks of each stack.
        kernel_size: Blocks in a window.
        stride: Blocks between the starts of neighbouring windows.
        ahead: Enter only at a block after the one that the route leaves.

    Source: SN-Net, section 3.3 (sliding windows).
    """
    # Windows overlap. The order of the pairs, i outer and j inner, is the published `cfg_id`.
    seen: set[tuple[int, int]] = set()
    layer = 0
    for start in range(0, depth, stride):
        blocks = range(start, min(start + kernel_size, depth))  # cut short at the end: no block is left out
        new = [(i, j) for i in blocks for j in blocks if (i, j) not in seen and (i < j or not ahead)]
        yield from (BlockPair(i, j, layer) for i, j in new)
        seen.update(new)
        layer += bool(new)  # a window with nothing new has no layer: released weights number only those that exist


def unpaired(front_depth: int, end_depth: int) -> Iterator[BlockPair]:
    """The block pairs of two stacks of different depth: each block of the end is entered from the front
    block at the same relative height.

    Routes enter only at a later block than the one they leave, so a front deeper than its end has no pairs.

    Source: SN-Net, section 3.3 (unpaired stitching).
    """
    # Nearest-neighbour interpolation of the front's numbers to the end's length, as in the released code, but in whole
    # numbers: a quotient of floats may round to the neighbour.
    height = [j * front_depth // end_depth for j in range(end_depth)]
    pairs = [(i, j) for i in range(front_depth) for j in range(end_depth) if height[j] == i < j]
    # A quirk of the released code: the k-th pair gets the layer of the k-th end block instead of its own end block's.
    # The released weights are laid out that way.
    for (i, j), layer in zip(pairs, height, strict=False):
        yield BlockPair(i, j, layer)


def chained(windows: Sequence[Sequence[BlockPair]], enter: int = 0) -> Iterator[tuple[BlockPair, ...]]:
    """All chains of a pair of each window whose pairs leave at or after the block where the route entered."""
    # If it left earlier, the anchor in the middle would run no block: its segment would end before it begins.
    if not windows:
        yield ()
        return
    for pair in windows[0]:
        if pair.front >= enter:
            for rest in chained(windows[1:], pair.end):
                yield (pair, *rest)


def route(chain: Sequence[Shape], pairs: Sequence[BlockPair]) -> Stitch:
    """The stitch through some anchors, given the blocks that join each to the next."""
    starts = [0, *(pair.end for pair in pairs)]
    stops = [*(pair.front + 1 for pair in pairs), sum(chain[-1].depths)]
    return Stitch(tuple(Segment(a.label, start, stop) for a, start, stop in zip(chain, starts, stops, strict=True)))


def blocks_of(anchors: Sequence[Shape]) -> str:
    """The blocks of each stage of some anchors, in words."""
    return ", ".join(f"{anchor.label} {'+'.join(map(str, anchor.depths))}" for anchor in anchors)
