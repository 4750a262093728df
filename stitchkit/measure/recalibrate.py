"""Batch-norm statistics for one stitch, whose SN-Net shares them among all routes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stitchkit.model.dense import DenseSNNet
from stitchkit.model.heads.heads import HEADS
from stitchkit.model.levels import LevelInfo
from stitchkit.model.snnet import SNNet
from stitchkit.networks.create import create_network
from stitchkit.networks.mode import evaluating
from stitchkit.settings.dense_recipe import DenseSpec
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_config import StitchConfig

BATCHES = 10
"""Training batches for the statistics of a stitch, unless a flag or the configuration says otherwise."""


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a network that have running statistics."""
    return [part for part in net.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]


def with_calibration(recipe: Recipe, config: StitchConfig | None) -> Recipe:
    """The recipe of an evaluation, which says from how many training batches stitched routes get their statistics.

    What flags and configuration leave open is decided by the anchors and the head of dense prediction: those with
    batch norms need it. Published configurations leave nothing open: they say 0, as they were published.
    """
    if recipe.run.recalibrate_bn is not None or not recipe.run.eval:
        return recipe
    number = 0
    if config is not None:
        with torch.device("meta"):
            networks = [create_network(spec, pretrained=False, checkpoints=False)[0] for spec in config.anchors]
            networks += [] if recipe.dense.spec is None else [_head_of(recipe.dense.spec)]
        number = BATCHES if any(map(batch_norms, networks)) else 0
    return replace(recipe, run=replace(recipe.run, recalibrate_bn=number))


def _head_of(spec: DenseSpec) -> nn.Module:
    """A head of this kind; whether it has batch norms does not depend on the levels, of which any head takes four."""
    assert spec.head is not None, "each task has a default"
    return HEADS[spec.head]([LevelInfo(channels=8, reduction=16, num_prefix_tokens=0)] * 4, 1)


def has_own_statistics(model: SNNet, cfg_id: int) -> bool:
    """Whether recalibration concerns a stitch: it has batch norms, and is no uncut anchor with a head of its own."""
    norms = (batch_norms(model.module_of(step)) for step in model.steps(cfg_id))
    shares = bool(model.space[cfg_id].joints) or isinstance(model, DenseSNNet)
    return shares and any(norms)


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Recompute a network's running statistics, in place, as the mean over batches of images `[B, C, H, W]`.

    Source: once-for-all (Cai et al., ICLR 2020) for the subnets of a supernet.
    """
    norms = batch_norms(net)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluating(net):
        # Only batch norms train: torch's `update_bn` puts the whole network into training mode, and dropout and
        # stochastic depth would change what the norms see.
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # torch then takes the plain mean over batches
        for images in batches:
            net(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
