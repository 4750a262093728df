"""The set of stitches that exist, in pure Python: no tensors, no weights."""

from stitchkit.routes.rules import SlidingWindow
from stitchkit.routes.space import StitchSpace
from stitchkit.routes.stitch import Joint, Segment, Step, Stitch

PairedWindow = SlidingWindow
"""The name that `import stitchkit` gives the rule."""

__all__ = ["Joint", "PairedWindow", "Segment", "SlidingWindow", "Step", "Stitch", "StitchSpace"]
