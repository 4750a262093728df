"""The view of timm's `VisionTransformer` and `VisionTransformerDistilled`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from stitchkit.networks.anchor import Anchor, Stage, patched_input_size
from stitchkit.networks.layout import Layout


class VisionTransformerAnchor(Anchor):
    """A plain vision transformer: patches and prefix tokens, equal blocks, one stage of tokens `[B, N, C]`.

    All variants that timm builds with these two classes are supported: with or without class, distillation and
    register tokens, `norm_pre` and `fc_norm`, and with any pooling.
    """

    model: VisionTransformer
    stem_children = (
        "patch_embed",
        "cls_token",
        "reg_token",
        "pos_embed",
        "dist_token",
        "pos_drop",
        "patch_drop",
        "norm_pre",
    )
    head_children = ("norm", "attn_pool", "fc_norm", "head_drop", "head", "head_dist")
    final_norm_children = ("norm",)  # which the released code skips on stitched routes
    class_tokens = ("cls_token",)
    stitched_stages = (0,)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage; its positions are patches."""
        model = self.model
        layout = Layout("NLC", model.embed_dim, (model.patch_embed.num_patches,), model.num_prefix_tokens)
        return (Stage(len(model.blocks), layout),)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of an input image, `(C, H, W)`."""
        return patched_input_size(self.model.in_chans, self.model.patch_embed)

    @property
    def stage_paths(self) -> Sequence[str]:
        """Paths of timm's stages."""
        return ("blocks",)

    @staticmethod
    def run_stem(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to tokens `[B, N, C]`."""
        assert isinstance(model, VisionTransformer)
        # timm has no method that ends before the blocks: this repeats the start of its `forward_features`.
        x = model.patch_drop(model._pos_embed(model.patch_embed(x)))
        x = model.norm_pre(x)
        return x
