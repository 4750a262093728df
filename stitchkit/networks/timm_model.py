"""What this project uses of timm's models, with types: timm gives them no common base."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn


class TimmModel(nn.Module):
    """The attributes and methods that all of timm's classifiers have. It is a type only; no model is made of it."""

    num_classes: int
    pretrained_cfg: dict[str, Any]
    norm: nn.Module

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        """Features to logits."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one."""
        raise NotImplementedError


def as_timm(model: nn.Module) -> TimmModel:
    """A model that is known to be one of timm's, under this type."""
    return cast(TimmModel, model)
