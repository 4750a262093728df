"""Names of weights: from those of published checkpoints to our own, which are timm's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from stitchkit.model.anchor import Anchor, has_view, view
from stitchkit.model.snnet import SNNet

# timm's split batch norm keeps further statistics for training; evaluation uses the first ones only.
_SPLIT_BN = ".aux_bn."


def own_names(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under the names of a model, given those of a published checkpoint; its own names stay as they are.

    Args:
        model: An SN-Net, an anchor's model, or any other, for which nothing is renamed.
        weights: Named weights for the whole model.
    """
    named = dict(weights)
    for prefix, anchor in _anchors(model).items():
        part = {name.removeprefix(prefix): named.pop(name) for name in weights if name.startswith(prefix)}
        named |= {prefix + name: value for name, value in anchor.own_names(part).items()}
    if not any(_SPLIT_BN in name for name in model.state_dict()):
        named = {name: value for name, value in named.items() if _SPLIT_BN not in name}
    return named


def _anchors(model: nn.Module) -> dict[str, Anchor]:
    if isinstance(model, SNNet):
        return {f"anchors.{number}.": anchor for number, anchor in enumerate(model.views.values())}
    return {"": view(model, label="model")} if has_view(model) else {}
