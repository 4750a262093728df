"""Swin transformers (V1) as anchors."""

from stitching_swin.anchors import SwinAnchor

__all__ = ["SwinAnchor"]
