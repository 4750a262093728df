"""The view of timm's `SwinTransformer`."""

from __future__ import annotations

from timm.models.swin_transformer import SwinTransformer

from stitching_swin.published import own_names
from stitchkit.networks.layout import Kind
from stitchkit.networks.view import View


class SwinAnchor(View):
    """A Swin transformer (V1) of any size, resolution and window: stages of `[B, H, W, C]`."""

    model: SwinTransformer
    kind: Kind = "NHWC"
    stem_children = ("patch_embed",)
    head_children = ("norm", "head")
    final_norm_children = ("norm",)
    stitched_stages = (0, 1, 2)  # as published: the last stage is left out
    own_names = staticmethod(own_names)
