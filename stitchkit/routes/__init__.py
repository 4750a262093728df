"""The set of stitches that exist, in pure Python: no tensors, no weights."""

from stitchkit.routes.rules import SlidingWindow
from stitchkit.routes.space import StitchSpace
from stitchkit.routes.stitch import Joint, Segment, Step, Stitch
from stitchkit.routes.two_way import Proportional, TwoWay

__all__ = ["Joint", "Proportional", "Segment", "SlidingWindow", "Step", "Stitch", "StitchSpace", "TwoWay"]
