"""The head of a composed network, its last linear layer: it can be replaced."""

from __future__ import annotations

import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.networks.classifier import classifier_of
from stitchnet.net import Net


def head_of(net: Net) -> tuple[str, nn.Linear]:
    """The last linear layer of a network, and its name."""
    name = classifier_of(net)
    layer = net.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise InputError(f"'{net}' has no linear layer, so it has no head to train; use other networks")
    return name, layer


def replace_head(net: Net, num_classes: int, *, seed: int = 0) -> None:
    """Replace the head by a random one for a number of classes.

    All outputs must be those of the head; otherwise the network stays as it is.
    """
    name, old = head_of(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = nn.Linear(old.in_features, num_classes, old.bias is not None)
    net.set_submodule(name, new.to(old.weight.device, old.weight.dtype))
    try:
        fits = net.num_outputs == num_classes
    except RuntimeError:  # two heads of different sizes
        fits = False
    if not fits:
        net.set_submodule(name, old)
        raise InputError(f"'{net}' does not end in one linear layer, so it gets no new head; use other networks")
    net.classifier, net.num_classes = None, num_classes
