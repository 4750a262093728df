"""Names of weights in published Swin checkpoints, the original ones and those of SN-Net."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

# Constants of the architecture, which timm computes itself.
_CONSTANTS = ("attn_mask", "relative_position_index")


def own_names(weights: Mapping[str, torch.Tensor], depths: Sequence[int]) -> dict[str, torch.Tensor]:  # noqa: ARG001
    """Weights of one Swin transformer under timm's names, given published ones or timm's.

    The published models down-sample at the end of a stage, timm's at the start of the next one.
    """
    kept = {name: value for name, value in weights.items() if name.rpartition(".")[2] not in _CONSTANTS}
    # Only in the published models does the first stage down-sample.
    if "layers.0.downsample.reduction.weight" not in kept:
        return kept
    return {_own_name(name): value for name, value in kept.items()}


def _own_name(name: str) -> str:
    name = re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)
    return re.sub(r"^head\.", "head.fc.", name)
