"""The interface of timm's models that this project uses, typed: timm gives them no common base."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn


class TimmModel(nn.Module):
    """The attributes of all of timm's classifiers, most of which an SN-Net shares; only a type, never instantiated."""

    num_classes: int
    in_chans: int
    pretrained_cfg: dict[str, Any]
    norm: nn.Module

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        """Features to logits."""
        raise NotImplementedError

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """The linear layers that give the logits; a distilled network has two."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one."""
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass."""
        raise NotImplementedError


def as_timm(model: nn.Module) -> TimmModel:
    """A model typed as one of timm's, whose interface it must have."""
    return cast(TimmModel, model)
