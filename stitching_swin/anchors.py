"""The view of timm's `SwinTransformer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from stitching_swin import published
from stitchkit.model.anchor import Anchor, Stage, stage_steps
from stitchkit.model.layout import Format


class SwinAnchor(Anchor):
    """A Swin transformer (V1) of any size, resolution and window: stages of `[B, H, W, C]`."""

    model: SwinTransformer
    stem_children = ("patch_embed",)
    head_children = ("norm", "head")
    final_norm_children = ("norm",)
    stitched_stages = (0, 1, 2)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages; positions are rows and columns of patches."""
        widths = [info["num_chs"] for info in self.model.feature_info]
        return tuple(
            Stage(len(stage.blocks), width, tuple(stage.output_resolution), Format.NHWC)
            for stage, width in zip(self.model.layers, widths, strict=True)
        )

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of an input image, `(C, H, W)`."""
        height, width = self.model.patch_embed.img_size
        return (self.model.in_chans, height, width)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks; patch merging runs with the first block of its stage."""
        return [step for stage in self.model.layers for step in stage_steps(stage)]

    def own_names(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights under timm's names, given those of a published checkpoint."""
        return published.own_names(weights)

    @staticmethod
    def run_stem(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to patches `[B, H, W, C]`."""
        return model.patch_embed(x)  # type: ignore[operator,no-any-return]

    @staticmethod
    def run_head(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Patches `[B, H, W, C]` to logits `[B, num_classes]`: final normalisation, pooling, classifier."""
        return model.forward_head(model.norm(x))  # type: ignore[operator,no-any-return]

    @staticmethod
    def run_head_without_norm(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Patches `[B, H, W, C]` to logits without the LayerNorm after the last block."""
        return model.forward_head(x)  # type: ignore[operator,no-any-return]
