"""Modes of modules for a while: evaluation, batch norms that take no notice of what they see, attention spelt out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while; every submodule gets its own mode back.

    Entering also makes timm's LeViT forget the attention biases that it keeps from earlier evaluation.
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def without_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norms normalise as ever for a while, but leave their running statistics as they are."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, None if (n := norm.num_batches_tracked) is None else n.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


@contextmanager
def unfused_attention(module: nn.Module) -> Iterator[None]:
    """Let timm's attention be spelt out for a while, as it was before there was one operator for it."""
    fused = [vars(part) for part in module.modules() if getattr(part, "fused_attn", False)]
    for attributes in fused:
        attributes["fused_attn"] = False
    try:
        yield
    finally:
        for attributes in fused:
            attributes["fused_attn"] = True
