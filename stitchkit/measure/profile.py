"""The cost of a stitch as the sum of the costs of its steps, each measured once: FLOPs, parameters, activations."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Hashable, Iterable
from types import FunctionType
from typing import NamedTuple

import torch
from torch import nn

from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating, unfused_attention
from stitchkit.networks.slices import extract
from stitchkit.routes import Step, Stitch

with warnings.catch_warnings():
    # On import, fvcore compiles losses that are not used here, in a way that torch has deprecated.
    warnings.simplefilter("ignore")
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis


class Cost(NamedTuple):
    """The cost of a network for one image: multiply-adds, parameters, and elements written, as fvcore counts them."""

    flops: int
    params: int
    activations: int

    def __add__(self, other: object) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(*map(operator.add, self, other))


class Profiler:
    """FLOPs, parameters and activations of the stitches of one SN-Net, for one image.

    The cost of a stitch is the sum over its steps, which equals that of its extracted network.

    Args:
        model: An SN-Net on any device; its weights do not matter. On the meta device it takes no memory, and only one
            step at a time does while it is measured.

    Source: SN-Net's FLOPs are fvcore's at batch 1, one multiply-add counted once, attention unfused.
    """

    def __init__(self, model: SNNet):
        self._model = model
        self._costs: dict[Hashable, Cost] = {}
        self._known: dict[Hashable, Cost] = {}
        self._entering: dict[str, list[torch.Tensor]] = {}

    def cost(self, stitch: Stitch | int) -> Cost:
        """Cost of a stitch at the anchors' input size."""
        return self.of_steps(self._model.steps(stitch))

    def of_steps(self, steps: Iterable[Step]) -> Cost:
        """Cost of some steps of a stitch; a layer of several of them has its parameters once."""
        total, parts = Cost(0, 0, 0), set[Hashable]()
        for step in steps:
            cost, key = self._cost_of(step), self._part_of(step)
            total += cost._replace(params=0) if key in parts else cost
            parts.add(key)
        return total

    def _part_of(self, step: Step) -> Hashable:
        """What the parameters of a step belong to: joints that share a stitching layer pay the same for it."""
        return step if step.joint is None else self._model.space.layers.get(step.joint, step)

    def _cost_of(self, step: Step) -> Cost:
        key = self._part_of(step)
        if key not in self._costs:
            self._costs[key] = self._measure(self._model.route_head.profiled(step), self._input_of(step))
        return self._costs[key]

    def _measure(self, step: nn.Module, x: torch.Tensor) -> Cost:
        """The cost of a step; equal blocks of a stage are traced only once."""
        key = (_structure(step), x.shape, x.dtype)
        if key not in self._known:
            self._known[key] = measure(*_with_memory(step, x)) if x.is_meta else measure(step, x)
        return self._known[key]

    def _input_of(self, step: Step) -> torch.Tensor:
        anchor = self._model.views[step.anchor]
        images = anchor.blank_image()
        if step.kind == "stem" or (step.kind == "head" and self._model.route_head.is_shared):
            return images
        if step.anchor not in self._entering:
            with evaluating(anchor.model), torch.no_grad():
                self._entering[step.anchor] = anchor.features(images)
        return self._entering[step.anchor][step.index]


@torch.no_grad()
def _with_memory(step: nn.Module, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    """A step of a network on the meta device and its input, with zeros: fvcore's tracer needs memory."""
    twin = extract(step).to_empty(device="cpu")
    for tensor in (*twin.parameters(), *twin.buffers()):
        tensor.zero_()  # some are indices, and what uninitialised memory holds may lie outside the table
    return twin, torch.zeros_like(x, device="cpu")


def _structure(module: nn.Module) -> Hashable:
    """Everything that a module's cost can depend on: classes, plain settings and shapes of weights, at every level."""
    plain = (bool, int, float, str, tuple, type, FunctionType, type(None))
    settings = {name: value for name, value in vars(module).items() if isinstance(value, plain) and name != "training"}
    weights = {name: tuple(value.shape) for name, value in module.named_parameters(recurse=False)}
    buffers = {name: tuple(value.shape) for name, value in module.named_buffers(recurse=False)}
    children = tuple((name, _structure(child)) for name, child in module.named_children())
    # The mode is left out: costs are always measured in evaluation mode.
    return type(module), repr(settings), repr(weights), repr(buffers), children


def measure(module: nn.Module, x: torch.Tensor) -> Cost:
    """The cost of a module with one input, for the whole batch `x`, by tracing it with fvcore; its mode is restored."""
    flops = sum(flops_by_operator(module, x).values())
    activations = sum(_count(ActivationCountAnalysis, module, x).values())
    return Cost(flops, sum(parameter.numel() for parameter in module.parameters()), activations)


def flops_by_operator(module: nn.Module, x: torch.Tensor) -> dict[str, int]:
    """Multiply-adds by operator, such as `conv` and `linear`; arguments as in `measure`."""
    return _count(FlopCountAnalysis, module, x)


def _count(
    analysis: type[FlopCountAnalysis | ActivationCountAnalysis], module: nn.Module, x: torch.Tensor
) -> dict[str, int]:
    # fvcore counts nothing inside the fused attention operator; the published figures include its matrix products.
    with evaluating(module), unfused_attention(module), torch.no_grad():
        quiet = analysis(module, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return {operator: int(count) for operator, count in quiet.by_operator().items()}
