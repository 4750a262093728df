"""Plain vision transformers (ViT, DeiT, DeiT-3, CLIP's image tower, ...) as anchors."""

from stitching_deit.anchors import VisionTransformerAnchor

__all__ = ["VisionTransformerAnchor"]
