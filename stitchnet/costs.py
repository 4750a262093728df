"""The cost of compositions and their fragments, known before a network is built."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from stitchkit.measure.profile import measure
from stitchkit.networks.mode import evaluating
from stitchnet.activations import Activation
from stitchnet.composition import Composition
from stitchnet.fragments import Fragment
from stitchnet.joint import map_shapes
from stitchnet.pool import Pool


@dataclass(frozen=True)
class FragmentCost:
    """The cost of a fragment for one image.

    Args:
        macs: Multiply-adds, as fvcore counts them.
        params: Number of parameters.
        reader_macs: Multiply-adds of its first layers per input feature; 0 if nothing can be folded.
        reader_params: Parameters likewise.
    """

    macs: int
    params: int
    reader_macs: int = 0
    reader_params: int = 0

    def behind(self, before: Activation, after: Activation, *, folded: bool) -> tuple[int, int]:
        """MACs and parameters of the fragment and of the joint before it.

        Args:
            before: An activation with the shape of the joint's input.
            after: An activation with the shape of the fragment's input.
            folded: Whether the joint is folded into the first layers.
        """
        folded = folded and self.reader_params > 0
        areas = [math.prod(activation.size or (1, 1)) for activation in (before, after)]
        enlarges = areas[0] < areas[1]  # an unfolded map runs at the smaller size, before the enlargement
        macs, params = self.macs, self.params
        if folded:
            more = before.width - after.width  # the layers read these features instead of their own
            macs, params = macs + more * self.reader_macs, params + more * self.reader_params
        else:
            own = sum(map(math.prod, map_shapes(before, after)))
            macs, params = macs + own * (min(areas) + after.layout.num_prefix_tokens), params + own
        if after.size is not None and before.size != after.size:
            macs += 4 * areas[1] * (after.width if enlarges and not folded else before.width)  # as fvcore counts it
        return macs, params


class Costs:
    """MACs and parameters of compositions, as sums over their fragments.

    Args:
        pool: The fragments.
        is_folded: Whether joints are folded into the first layers of the next fragment.
    """

    def __init__(self, pool: Pool, *, is_folded: bool):
        self._pool = pool
        self._is_folded = is_folded
        self._known: dict[Fragment, FragmentCost] = {}

    def of(self, composition: Composition) -> tuple[int, int]:
        """MACs and parameters of a composition for one image."""
        fragment, parent = composition.fragment, composition.parent
        x = self._pool.images if parent is None else self._pool.input_of(fragment).tensor
        if fragment not in self._known:
            self._known[fragment] = fragment_cost(fragment, x[:1])
        cost = self._known[fragment]
        if parent is None or self._is_unjoined(composition):
            here = cost.macs, cost.params
        else:
            before, after = self._pool.own_output(parent.fragment), self._pool.input_of(fragment)
            here = cost.behind(before, after, folded=self._is_folded)
        earlier = self.of(parent) if parent else (0, 0)
        return here[0] + earlier[0], here[1] + earlier[1]

    def _is_unjoined(self, composition: Composition) -> bool:
        """Whether each of its fragments gets its usual input, as in its own network or a twin of it."""
        parent = composition.parent
        if parent is None:
            return True
        before, after = self._pool.own_output(parent.fragment), self._pool.input_of(composition.fragment)
        return before.key == after.key and self._is_unjoined(parent)


@torch.no_grad()
def fragment_cost(fragment: Fragment, x: torch.Tensor) -> FragmentCost:
    """Measure a fragment on its input for one image."""
    positions: list[int] = []
    readers = [layer for _, layer in fragment.readers(fragment.module)]
    hooks = [layer.register_forward_hook(_count_positions(positions, layer)) for layer in readers]
    with evaluating(fragment.module):
        fragment.module(x)
    for hook in hooks:
        hook.remove()
    each = [layer.weight.numel() // layer.weight.shape[1] for layer in readers]
    macs = sum(count * size for count, size in zip(positions, each, strict=True))
    cost = measure(fragment.module, x)
    return FragmentCost(cost.flops, cost.params, macs, sum(each))


def _count_positions(found: list[int], layer: nn.Conv2d | nn.Linear) -> Callable[..., None]:
    def count(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        found.append(output.numel() // layer.weight.shape[0])

    return count
