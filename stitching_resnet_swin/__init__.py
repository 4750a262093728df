"""ResNets as anchors, to be stitched with each other or with Swin transformers."""

from stitching_resnet_swin.anchors import ResNetAnchor

__all__ = ["ResNetAnchor"]
