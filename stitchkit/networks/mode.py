"""Modes of modules, most of them for a while: evaluation, batch norms with fixed statistics, unfused attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while, then restore the mode of every submodule.

    This also clears the attention biases that timm's LeViT caches during evaluation.
    """
    # Modes may differ within a module: frozen parts stay in evaluation mode while the rest trains.
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def without_statistics(module: nn.Module) -> Iterator[None]:
    """Freeze the running statistics of batch norms for a while, without changing how they normalise."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, None if (n := norm.num_batches_tracked) is None else n.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # not evaluation mode: the batch must still be normalised by its own statistics
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


@contextmanager
def unfused_attention(module: nn.Module) -> Iterator[None]:
    """Compute timm's attention by single operators for a while, without the fused kernel."""
    fused = unfuse_attention(module)
    try:
        yield
    finally:
        for part in fused:
            vars(part)["fused_attn"] = True


def unfuse_attention(module: nn.Module) -> list[nn.Module]:
    """Compute timm's attention by single operators from now on; returns the submodules that this changed."""
    fused = [part for part in module.modules() if getattr(part, "fused_attn", False)]
    for part in fused:
        vars(part)["fused_attn"] = False
    return fused
