"""What a stitch costs: FLOPs and parameters, as sums over its steps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from stitchkit.model.mode import evaluating
from stitchkit.model.snnet import SNNet
from stitchkit.routes import Stitch

with warnings.catch_warnings():
    # fvcore compiles losses that nobody here uses when it is imported, in a way that torch gives up.
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis


class Cost(NamedTuple):
    """What a network costs for one image.

    Args:
        flops: Multiply-adds, as fvcore counts them.
        params: Number of parameters.
    """

    flops: int
    params: int

    def __add__(self, other: object) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(self.flops + other.flops, self.params + other.params)


class Profiler:
    """Costs of the stitches of one SN-Net.

    Each step is measured once, when the first stitch needs it; a stitch costs the sum of its steps, which is what
    tracing its extracted network gives.

    Args:
        model: An SN-Net on any device; its weights do not matter.

    Source: SN-Net's FLOPs are fvcore's at batch 1, one multiply-add counted once, attention unfused.
    """

    def __init__(self, model: SNNet):
        self._model = model
        self._costs: dict[tuple[str, ...], Cost] = {}
        self._inputs: dict[str, list[torch.Tensor]] = {}

    def cost(self, stitch: Stitch | int) -> Cost:
        """FLOPs and parameters of a stitch at the anchors' input size, batch 1.

        Raises:
            InputError: If the stitch is not in the space.
        """
        stitch = self._model.resolve(stitch)
        final_norm = stitch.is_anchor or self._model.stitched_final_norm
        first, last = stitch.segments[0].anchor, stitch.segments[-1].anchor
        total = self._step(first, "stem") + self._step(last, "head" if final_norm else "head without norm")
        for segment in stitch.segments:
            for block in range(segment.start, segment.stop):
                total += self._step(segment.anchor, str(block))
        for joint in stitch.joints:
            layer = self._model.layer(joint)
            x = self._entering(joint.front)[joint.front_block + 1]
            total += self._measured(("layer", *map(str, self._model.space.layers[joint])), layer, x)
        return total

    def _step(self, label: str, step: str) -> Cost:
        """Cost of one step of one anchor: its stem, a block by number, or its head."""
        anchor = self._model.views[label]
        inputs = self._entering(label)
        if step == "stem":
            image = inputs[0].new_zeros(1, *anchor.input_size)
            return self._measured((label, step), anchor.stem, image)
        if step.startswith("head"):
            return self._measured((label, step), anchor.head(final_norm=step == "head"), inputs[-1])
        return self._measured((label, step), anchor.blocks[int(step)], inputs[int(step)])

    def _entering(self, label: str) -> list[torch.Tensor]:
        """What enters each block of an anchor, for one blank image."""
        if label not in self._inputs:
            anchor = self._model.views[label]
            weight = next(anchor.model.parameters())  # its device and precision are those of images
            with evaluating(anchor.model), torch.no_grad():
                self._inputs[label] = anchor.features(weight.new_zeros(1, *anchor.input_size))
        return self._inputs[label]

    def _measured(self, key: tuple[str, ...], step: nn.Module, x: torch.Tensor) -> Cost:
        if key not in self._costs:
            self._costs[key] = measure(step, x)
        return self._costs[key]


def measure(module: nn.Module, x: torch.Tensor) -> Cost:
    """FLOPs and parameters of a module, by tracing it with fvcore.

    Args:
        module: Any module of one input; its mode is kept.
        x: Its input; the count is for the whole batch.
    """
    with evaluating(module), _unfused_attention(module), torch.no_grad():
        analysis = FlopCountAnalysis(module, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        flops = analysis.total()
    return Cost(int(flops), sum(parameter.numel() for parameter in module.parameters()))


@contextmanager
def _unfused_attention(module: nn.Module) -> Iterator[None]:
    """timm's attention spelt out, because fvcore does not see inside the fused operator."""
    fused = [part for part in module.modules() if getattr(part, "fused_attn", False)]
    for part in fused:
        part.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for part in fused:
            part.fused_attn = True  # type: ignore[assignment]
