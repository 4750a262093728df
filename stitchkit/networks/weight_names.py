"""Names of weights: from those of published checkpoints to our own, which are timm's."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import nn

from stitchkit.networks.anchor import Anchor
from stitchkit.networks.families import anchor_of, has_view

# timm's split batch norm has further norms for training; evaluation uses only the first one.
_SPLIT_BN = re.compile(r"\.aux_bn\.\d+")


def own_names(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under the names of a model, given those of a published checkpoint; its own names stay as they are.

    An SN-Net and the models of anchors have published names; for any other model nothing is renamed.
    """
    named = _unwrapped(weights, model.state_dict().keys())
    for prefix, anchor in _anchors(model).items():
        part = {name.removeprefix(prefix): named.pop(name) for name in list(named) if name.startswith(prefix)}
        named |= {prefix + name: value for name, value in anchor.own_names(part, anchor.depths).items()}
    return _fit_split_norms(named, model.state_dict().keys())


def _unwrapped(weights: Mapping[str, torch.Tensor], wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """Weights without their common prefix, if they are those of a network that wraps the model."""
    first = next(iter(weights), "")
    prefixes = ["", *(first[: end + 1] for end, letter in enumerate(first) if letter == ".")]
    shared = [prefix for prefix in prefixes if all(name.startswith(prefix) for name in weights)]
    kept = [prefix for prefix in shared if any(name.removeprefix(prefix) in wanted for name in weights)]
    return {name.removeprefix(kept[0]) if kept else name: value for name, value in weights.items()}


def _fit_split_norms(weights: dict[str, torch.Tensor], wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """Leave out further norms that the model lacks, and start those that the file lacks as copies of the first."""
    kept = {name: value for name, value in weights.items() if _SPLIT_BN.search(name) is None or name in wanted}
    for name in wanted:
        first = _SPLIT_BN.sub("", name)
        if name not in kept and first != name and first in kept:
            kept[name] = kept[first].clone()
    return kept


def _anchors(model: nn.Module) -> dict[str, Anchor]:
    if (views := getattr(model, "views", None)) is not None:  # an SN-Net
        return {f"anchors.{number}.": anchor for number, anchor in enumerate(views.values())}
    return {"": anchor_of(model, label="model")} if has_view(model) else {}
