"""The view of timm's `VisionTransformer` and `VisionTransformerDistilled`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from stitchkit.model.anchor import Anchor, Stage
from stitchkit.model.layout import Format


class VisionTransformerAnchor(Anchor):
    """A plain vision transformer: patches and prefix tokens, equal blocks, one stage of tokens `[B, N, C]`.

    Every variant that timm builds with these two classes is one: with class, distillation and register tokens or
    none, `norm_pre`, `fc_norm`, and any pooling.
    """

    model: VisionTransformer
    stem_children = (
        "patch_embed",
        "cls_token",
        "dist_token",
        "reg_token",
        "pos_embed",
        "pos_drop",
        "patch_drop",
        "norm_pre",
    )
    head_children = ("norm", "attn_pool", "fc_norm", "head_drop", "head", "head_dist")
    final_norm_children = ("norm",)
    class_tokens = ("cls_token",)
    stitched_stages = (0,)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage; its positions are all tokens, prefix tokens included."""
        tokens = self.model.patch_embed.num_patches + self.model.num_prefix_tokens
        return (Stage(len(self.blocks), self.model.embed_dim, (tokens,), Format.NLC),)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of an input image, `(C, H, W)`."""
        height, width = self.model.patch_embed.img_size
        return (self.model.in_chans, height, width)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks."""
        return list(self.model.blocks)

    @staticmethod
    def run_stem(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to tokens `[B, N, C]`, as timm's `forward_features` begins."""
        x = model.patch_embed(x)  # type: ignore[operator]
        x = model._pos_embed(x)  # type: ignore[operator]
        x = model.patch_drop(x)  # type: ignore[operator]
        return model.norm_pre(x)  # type: ignore[operator,no-any-return]

    @staticmethod
    def run_head(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, N, C]` to logits `[B, num_classes]`: final normalisation, pooling, classifier."""
        return model.forward_head(model.norm(x))  # type: ignore[operator,no-any-return]

    @staticmethod
    def run_head_without_norm(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, N, C]` to logits without the LayerNorm after the last block.

        Source: the released SN-Net code for DeiT, whose stitched routes do so.
        """
        return model.forward_head(x)  # type: ignore[operator,no-any-return]
