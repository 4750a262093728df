"""Batch-norm statistics for one stitch, whose SN-Net shares them among all routes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stitchkit.networks.mode import evaluating


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Recompute a network's running statistics, in place, as the mean over batches of images `[B, C, H, W]`.

    Source: once-for-all (Cai et al., ICLR 2020) for the subnets of a supernet.
    """
    norms = [part for part in net.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
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
