"""Pairs of blocks that are joined between two stacks, and the stitching layers that they share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class BlockPair(NamedTuple):
    """Two joined blocks: the route leaves after `front` and enters before `end`, through layer `layer`."""

    front: int
    end: int
    layer: int


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
    # Windows overlap. The order in which pairs appear, i outer and j inner, is the published `cfg_id`.
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
