"""LeViT as anchors."""

from stitching_levit.anchors import LevitAnchor

__all__ = ["LevitAnchor"]
