"""The set of stitches that exist, in pure Python: no tensors, no weights."""

from stitchkit.routes.rules import PairedWindow, Rule, SlidingWindow, StageWise
from stitchkit.routes.space import StitchSpace
from stitchkit.routes.stitch import Joint, Segment, Step, Stitch

__all__ = ["Joint", "PairedWindow", "Rule", "Segment", "SlidingWindow", "StageWise", "Step", "Stitch", "StitchSpace"]
