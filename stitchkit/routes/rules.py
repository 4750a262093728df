"""The rules that say where anchors may be joined, and which joints share a stitching layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, Protocol

from stitchkit.errors import InputError
from stitchkit.routes.stitch import Joint, Segment, Stitch

LayerPath = tuple[int, ...]
"""Where a stitching layer stands among all of them, as in the published key names: (pair, layer)."""


class Shape(Protocol):
    """What a rule needs to know of an anchor."""

    @property
    def label(self) -> str:
        """What stitches call it."""

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks per stage."""


class Plan(NamedTuple):
    """What a rule decides: the stitches after the anchors, in the published order, and the layer of every joint."""

    stitches: tuple[Stitch, ...]
    layers: dict[Joint, LayerPath]


class Rule(Protocol):
    """A rule turns the depths of the anchors into a plan; it is a pure function of them."""

    def plan(self, anchors: Sequence[Shape]) -> Plan:
        """Stitches and layers for `anchors`, from cheap to costly."""


class WindowPair(NamedTuple):
    """A pair of blocks that one window joins: leave after `front`, enter before `end`, through layer `layer`."""

    front: int
    end: int
    layer: int


def window_pairs(depth: int, *, kernel_size: int, stride: int) -> Iterator[WindowPair]:
    """The block pairs of a window that slides over two stacks of `depth` blocks.

    Every window yields all pairs of its blocks that no earlier window had; they share a new stitching layer.

    Source: SN-Net, section 3.3 (sliding windows).
    """
    seen: set[tuple[int, int]] = set()
    layer = 0
    for start in range(0, depth, stride):
        blocks = range(start, min(start + kernel_size, depth))
        new = [(i, j) for i in blocks for j in blocks if (i, j) not in seen]
        yield from (WindowPair(i, j, layer) for i, j in new)
        seen.update(new)
        layer += bool(new)


@dataclass(frozen=True)
class PairedWindow:
    """A window slides over anchors of equal depth and joins every pair of blocks inside it.

    Args:
        kernel_size: Blocks in a window.
        stride: Blocks between the starts of neighbouring windows.
        nearest: Join neighbouring anchors only; otherwise every pair of anchors, and routes through three or more,
            where a further joint leaves at or after the block at which the route entered.

    Raises:
        InputError: If kernel size or stride is below 1.

    Source: SN-Net, sections 3.2 and 3.3.
    """

    kernel_size: int = 2
    stride: int = 1
    nearest: bool = True

    def __post_init__(self) -> None:
        for key, value in (("stitch_kernel_size", self.kernel_size), ("stitch_stride", self.stride)):
            if value < 1:
                raise InputError(f"{key} is {value}; it must be at least 1 block")

    def plan(self, anchors: Sequence[Shape]) -> Plan:
        """Stitches and layers for `anchors`, which must have one stage of the same depth each.

        Raises:
            InputError: If depths differ or the window is larger than the depth.
        """
        depth = self._common_depth(anchors)
        window = list(window_pairs(depth, kernel_size=self.kernel_size, stride=self.stride))
        couples = [c for c in combinations(range(len(anchors)), 2) if not self.nearest or c[1] - c[0] == 1]
        layers: dict[Joint, LayerPath] = {}
        for number, (front, end) in enumerate(couples):
            for pair in window:
                joint = Joint(anchors[front].label, pair.front, anchors[end].label, pair.end)
                layers[joint] = (number, pair.layer)
        chains: Iterable[tuple[int, ...]] = couples
        if not self.nearest:
            chains = [c for size in range(2, len(anchors) + 1) for c in combinations(range(len(anchors)), size)]
        stitches = [
            _stitch([anchors[index].label for index in chain], pairs, depth)
            for chain in chains
            for pairs in _chained(window, len(chain) - 1)
        ]
        return Plan(tuple(stitches), layers)

    def _common_depth(self, anchors: Sequence[Shape]) -> int:
        depths = {anchor.label: anchor.depths for anchor in anchors}
        if len(set(depths.values())) > 1 or any(len(stages) > 1 for stages in depths.values()):
            listed = ", ".join(f"{label} {'+'.join(map(str, stages))}" for label, stages in depths.items())
            raise InputError(
                f"a paired window needs anchors of one stage and equal depth, but the blocks are: {listed}; "
                "choose anchors of the same depth"
            )
        (depth,) = anchors[0].depths
        if self.kernel_size > depth:
            raise InputError(
                f"stitch_kernel_size is {self.kernel_size}, more than the {depth} blocks of an anchor; "
                f"choose 1 to {depth}"
            )
        return depth


def _chained(window: Sequence[WindowPair], count: int, enter: int = 0) -> Iterator[tuple[WindowPair, ...]]:
    """All ways to take `count` joints in a row, each leaving at or after the block where the route entered."""
    if count == 0:
        yield ()
        return
    for pair in window:
        if pair.front >= enter:
            for rest in _chained(window, count - 1, pair.end):
                yield (pair, *rest)


def _stitch(labels: Sequence[str], pairs: Sequence[WindowPair], depth: int) -> Stitch:
    starts = [0, *(pair.end for pair in pairs)]
    stops = [*(pair.front + 1 for pair in pairs), depth]
    return Stitch(tuple(map(Segment, labels, starts, stops)))
