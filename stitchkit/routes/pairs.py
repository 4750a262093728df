"""Which blocks of two stacks are joined, and which of these pairs share a stitching layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class BlockPair(NamedTuple):
    """A pair of blocks that are joined: leave after `front`, enter before `end`, through layer `layer`."""

    front: int
    end: int
    layer: int


def paired(depth: int, *, kernel_size: int, stride: int, ahead: bool = False) -> Iterator[BlockPair]:
    """The block pairs of a window that slides over two stacks of `depth` blocks.

    Every window yields all pairs of its blocks that no earlier window had; they share a new stitching layer.

    Args:
        depth: Blocks of each stack.
        kernel_size: Blocks in a window.
        stride: Blocks between the starts of neighbouring windows.
        ahead: Only enter at a later block than the one that is left.

    Source: SN-Net, section 3.3 (sliding windows).
    """
    seen: set[tuple[int, int]] = set()
    layer = 0
    for start in range(0, depth, stride):
        blocks = range(start, min(start + kernel_size, depth))
        new = [(i, j) for i in blocks for j in blocks if (i, j) not in seen and (i < j or not ahead)]
        yield from (BlockPair(i, j, layer) for i, j in new)
        seen.update(new)
        layer += bool(new)


def unpaired(front_depth: int, end_depth: int) -> Iterator[BlockPair]:
    """The block pairs of two stacks of different depth: every end block is entered from the front block at its height.

    Heights are compared by nearest neighbours: end block `j` is as high as front block `j * front / end`, rounded
    down. Only later blocks than the one that is left are entered, so a front that is deeper than its end has none.

    Source: SN-Net, section 3.3 (unpaired stitching). The released code gives the k-th pair the layer of the k-th end
    block, not of its own one; so do we, because the released weights are laid out like that.
    """
    height = [j * front_depth // end_depth for j in range(end_depth)]
    pairs = [(i, j) for i in range(front_depth) for j in range(end_depth) if height[j] == i < j]
    for (i, j), layer in zip(pairs, height, strict=False):
        yield BlockPair(i, j, layer)
