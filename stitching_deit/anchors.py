"""The view of timm's `VisionTransformer` and `VisionTransformerDistilled`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from stitchkit.networks.layout import Kind, Layout
from stitchkit.networks.view import Stage, View


class VisionTransformerAnchor(View):
    """A plain vision transformer: patches and prefix tokens, equal blocks, one stage of tokens `[B, N, C]`.

    All variants that timm builds with these two classes are supported: with or without class, distillation and
    register tokens, `norm_pre` and `fc_norm`, and with any pooling.
    """

    model: VisionTransformer
    kind: Kind = "NLC"
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
        layout = Layout(self.kind, model.embed_dim, (model.patch_embed.num_patches,), model.num_prefix_tokens)
        return (Stage("blocks", len(model.blocks), layout),)

    @classmethod
    def run_stem(cls, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to tokens `[B, N, C]`."""
        assert isinstance(model, VisionTransformer)
        # timm has no method that ends before the blocks: this repeats the start of its `forward_features`.
        x = model.patch_drop(model._pos_embed(model.patch_embed(x)))
        x = model.norm_pre(x)
        return x

    @staticmethod
    def own_names(weights: Mapping[str, torch.Tensor], depths: Sequence[int]) -> dict[str, torch.Tensor]:  # noqa: ARG004
        """Weights under timm's names: released files of DeiT-3 and SN-Netv2 name layer scale otherwise."""
        return {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): value for name, value in weights.items()}
