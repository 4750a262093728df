"""The rule for anchors of any depths: joints at the same relative height, in either direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stitchkit.routes.cuts import Directions
from stitchkit.routes.rules import LayerPath, Shape, check_stages
from stitchkit.routes.stitch import Joint, Stitch
from stitchkit.routes.two_way import TwoWay


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
