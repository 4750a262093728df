"""Keeping the anchors, `--preserve`: docs/preserve.md compares the ways."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stitchkit.display import quantity
from stitchkit.errors import InputError
from stitchkit.model.snnet import SNNet
from stitchkit.networks.weights import load_content
from stitchkit.settings.stitch_recipe import StitchRecipe

_logger = logging.getLogger(__name__)


def freeze(model: SNNet, settings: StitchRecipe) -> None:
    """Freeze what the settings do not train of the anchors."""
    if settings.freezes_anchors or not settings.fulltune:
        freeze_anchors(model, class_tokens=not settings.freezes_anchors)


def freeze_anchors(model: SNNet, *, class_tokens: bool = True) -> None:
    """Train only what is not the anchors'.

    Their batch norms keep their statistics: drifting ones would change the anchors, although no parameter is trained.

    Args:
        class_tokens: Train the class tokens too, which changes what uncut anchors compute.

    Source: the released configuration `"fulltune": false`, which trains the class tokens.
    """
    model.frozen_norms = [part for part in model.anchors.modules() if isinstance(part, _BatchNorm)]
    model.train(model.training)
    for anchor in model.views.values():
        anchor.model.requires_grad_(False)
        for name in anchor.class_tokens if class_tokens else ():
            if (token := getattr(anchor.model, name, None)) is not None:
                token.requires_grad_(True)


def trainable_stitches(model: SNNet) -> list[int]:
    """The `cfg_id`s of the routes with trainable parameters."""
    trainable = (any(weight.requires_grad for weight in model.route(cfg_id).parameters()) for cfg_id in model.space.ids)
    return [*compress(model.space.ids, trainable)]


def say_frozen(model: SNNet, settings: StitchRecipe) -> str:
    """How many parameters are trained, in words; empty if all are."""
    if settings.fulltune and not settings.freezes_anchors:
        return ""
    weights = [*model.parameters()]
    trained = quantity(sum(weight.numel() for weight in weights if weight.requires_grad))
    return f"{trained} of {quantity(sum(map(torch.numel, weights)))} parameters are trained"


def warn_of_guesses(alone: Mapping[str, float], num_classes: int) -> None:
    """Warn of anchors that are hardly better than guesses, such as those with a new classifier: they are kept so."""
    guess = 100 / num_classes
    if poor := [f"{label} {acc1:.2f} %" for label, acc1 in alone.items() if acc1 < 2 * guess]:
        _logger.warning(
            "--preserve keeps anchors as they are, but alone they are hardly better than a guess, which is right for "
            "%.2f %%: %s; train them for these classes first, and name the weights as their 'checkpoint', or give "
            "--preserve none",
            guess, ", ".join(poor),
        )  # fmt: skip


@dataclass
class UntouchedAnchors:
    """The anchors as they were before the training; checkpoints have it, since a resumed run cannot find it out."""

    copies: nn.ModuleList | None = None
    """Of the parts of anchors that a loss needs, if it needs any."""
    alone: dict[str, float] = field(default_factory=dict)
    """Accuracy of each anchor in percent, by label; empty in runs that older versions began."""

    def state(self) -> dict[str, object]:
        """The part of a checkpoint."""
        copies = {} if self.copies is None else {"copies": self.copies.state_dict()}
        return {"alone": dict(self.alone), **copies}

    def restore(self, content: Mapping[str, object], path: str | Path) -> None:
        """Take the part of a checkpoint, whose schema has been checked."""
        alone = content.get("alone", {})
        assert isinstance(alone, dict), "it was checked"
        self.alone = alone
        if self.copies is None:
            return
        if "copies" not in content:
            advice = "start anew from its weights with --initial-checkpoint"
            raise InputError(f"checkpoint '{path}' lacks the copies of the anchors, so it cannot be resumed; {advice}")
        load_content(self.copies, {"state_dict": content["copies"]}, path)
