"""The cost of compositions and their fragments, known before a network is built."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from stitchkit.measure.profile import measure
from stitchnet.activations import Activation
from stitchnet.composition import Composition
from stitchnet.fragments import Fragment
from stitchnet.joint import map_shapes
from stitchnet.pool import Pool


class FragmentCost(NamedTuple):
    """The cost of a fragment for one image, and that of its first layers per input feature; 0 if none can be folded."""

    macs: int
    params: int
    reader_macs: int
    reader_params: int


class Costs:
    """MACs and parameters of compositions, as sums over their fragments, with joints folded as in their networks."""

    def __init__(self, pool: Pool, *, is_folded: bool):
        self._pool = pool
        self._is_folded = is_folded
        self._known: dict[Fragment, FragmentCost] = {}

    def of(self, composition: Composition) -> tuple[int, int]:
        """MACs and parameters of a composition for one image."""
        fragment, parent = composition.fragment, composition.parent
        if fragment not in self._known:
            x = self._pool.images if parent is None else self._pool.input_of(fragment).tensor
            self._known[fragment] = _measure(fragment, x[:1])
        cost = self._known[fragment]
        if parent is None:
            return cost.macs, cost.params
        macs, params = self.of(parent)
        if self._is_unjoined(composition):
            return macs + cost.macs, params + cost.params
        more = self._behind(cost, self._pool.own_output(parent.fragment), self._pool.input_of(fragment))
        return macs + more[0], params + more[1]

    def _is_unjoined(self, composition: Composition) -> bool:
        """Whether each of its fragments gets its usual input, as in its own network or a twin of it."""
        parent = composition.parent
        if parent is None:
            return True
        before, after = self._pool.own_output(parent.fragment), self._pool.input_of(composition.fragment)
        return before.key == after.key and self._is_unjoined(parent)

    def _behind(self, cost: FragmentCost, before: Activation, after: Activation) -> tuple[int, int]:
        """MACs and parameters of a fragment and of the joint before it, from `before` to its usual input."""
        macs, params, reader_macs, reader_params = cost
        is_folded = self._is_folded and reader_params > 0
        areas = before.num_positions, after.num_positions
        enlarges = areas[0] < areas[1]  # an unfolded map runs at the smaller size, before the enlargement
        if is_folded:
            more = before.width - after.width  # the layers read these features instead of their own
            macs, params = macs + more * reader_macs, params + more * reader_params
        else:
            own = sum(map(math.prod, map_shapes(before, after)))
            macs, params = macs + own * (min(areas) + after.layout.num_prefix_tokens), params + own
        if after.size is not None and before.size != after.size:
            macs += 4 * areas[1] * (after.width if enlarges and not is_folded else before.width)  # as fvcore counts it
        return macs, params


def _measure(fragment: Fragment, x: torch.Tensor) -> FragmentCost:
    """The cost of a fragment for its input of one image, which its first layers read as it is."""
    cost, reader_macs, reader_params = measure(fragment.module, x), 0, 0
    for reader in fragment.readers(fragment.module):
        reader_macs += measure(reader, x).flops // reader.weight.shape[1]
        reader_params += reader.weight.numel() // reader.weight.shape[1]
    return FragmentCost(cost.flops, cost.params, reader_macs, reader_params)
