"""The interface of timm's models that this project uses, typed: timm gives them no common base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn


class TimmModel(nn.Module):
    """The attributes of timm's classifiers, most of them shared by an SN-Net; only a type, never instantiated."""

    num_classes: int
    in_chans: int
    pretrained_cfg: dict[str, Any]
    feature_info: Sequence[dict[str, Any]]
    norm: nn.Module
    num_features: int
    forward_head: Callable[..., torch.Tensor]
    get_classifier: Callable[[], nn.Module | tuple[nn.Module, ...]]  # a distilled network has two
    reset_classifier: Callable[[int], None]
    set_grad_checkpointing: Callable[[], None]


def as_timm(model: nn.Module) -> TimmModel:
    """A model typed as one of timm's, whose interface it must have."""
    return cast(TimmModel, model)
