"""bfloat16 on a CPU: proposed where the CPU has instructions for it, and without the kernel that makes it slow."""

from __future__ import annotations

import logging

import torch
from torch import nn

from stitchkit.networks.mode import unfuse_attention

_logger = logging.getLogger(__name__)

_PAYS_FROM = 64
"""How wide the widest matrix product must be for bfloat16 to be proposed.

At 64, small ViTs are 1.4 times as fast or more on a CPU with avx512_bf16, at 24 hardly or not: benchmarks/README.md.
"""


def _width(network: nn.Module) -> int:
    """The width of the widest matrix product: the smaller side of a weight seen as a matrix, `[out, in]`."""
    shapes = (parameter.shape for parameter in network.parameters())
    return max((min(shape[0], shape[1:].numel()) for shape in shapes if len(shape) >= 2), default=0)


def suit_precision(network: nn.Module, device: torch.device, *, amp: bool, how: str) -> None:
    """Prepare a network on a CPU for bfloat16, or else log once how to compute in it if that is faster.

    Args:
        network: On its device, with its weights in their precision.
        amp: Whether it runs in mixed precision, which is bfloat16 on a CPU.
        how: The setting that turns mixed precision on.
    """
    if device.type != "cpu":
        return
    if amp or any(parameter.dtype == torch.bfloat16 for parameter in network.parameters()):
        # torch's fused attention needs matrix tiles to be fast in bfloat16. Without, it is no faster than in float32,
        # takes a quarter of an evaluation and a third of a training step: benchmarks/README.md.
        if not torch.cpu._is_amx_tile_supported():
            unfuse_attention(network)
    elif (
        # torch.cpu.get_capabilities says the same in public, but the oldest torch that we allow, 2.8, lacks it.
        (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()) and _width(network) >= _PAYS_FROM
    ):
        _logger.info(
            "this CPU multiplies matrices in bfloat16 much faster than in float32: %s uses that, and changes "
            "accuracies by rounding; benchmarks/README.md has the figures", how,
        )  # fmt: skip
