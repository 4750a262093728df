"""Names of weights in published LeViT checkpoints, the original ones and those of SN-Net."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch

# A constant of the architecture, which timm computes itself.
_CONSTANT = "attention_bias_idxs"


def own_names(weights: Mapping[str, torch.Tensor], depths: Sequence[int]) -> dict[str, torch.Tensor]:
    """Weights of one LeViT under timm's names, given published ones or timm's.

    The published models are a flat list of attentions and MLPs; timm's have stages.
    """
    kept = {name: value for name, value in weights.items() if not name.endswith(_CONSTANT)}
    if not any(name.startswith("patch_embed.") for name in kept):
        return kept
    places = list(_places(depths))
    return {_own_name(name, places): value for name, value in kept.items()}


def _places(depths: Sequence[int]) -> Iterator[str]:
    """timm's path of each entry of the flat list."""
    for stage, depth in enumerate(depths):
        if stage:
            yield f"stages.{stage}.downsample.attn_downsample"
            yield f"stages.{stage}.downsample.mlp"
        for block in range(depth):
            yield f"stages.{stage}.blocks.{block}.attn"
            yield f"stages.{stage}.blocks.{block}.mlp"


def _own_name(name: str, places: Sequence[str]) -> str:
    # Entries 0, 2, 4, 6 of the stem are convolutions, those between them activations.
    name = re.sub(r"^patch_embed\.(\d)", lambda found: f"stem.conv{int(found[1]) // 2 + 1}", name)
    name = re.sub(r"^blocks\.(\d+)(\.m)?", lambda found: places[int(found[1])], name)
    # An MLP is a list of layer, activation, layer; the others of activation, layer.
    name = re.sub(r"\.mlp\.(\d)\.", lambda found: f".mlp.ln{int(found[1]) // 2 + 1}.", name)
    name = re.sub(r"\.(q|proj)\.1\.", r".\1.ln.", name)
    return re.sub(r"\.(c|l)\.(weight|bias)$", r".linear.\2", name)
