"""The set of stitches that exist, in pure Python: no tensors, no weights."""

from stitchkit.routes.rules import SlidingWindow
from stitchkit.routes.space import StitchSpace
from stitchkit.routes.stitch import Joint, Segment, Step, Stitch

__all__ = ["Joint", "Segment", "SlidingWindow", "Step", "Stitch", "StitchSpace"]
