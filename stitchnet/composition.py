"""Compositions: sequences of fragments from a start towards an end."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from stitchkit.distributed import choose_device
from stitchkit.errors import InputError, one_line
from stitchkit.measure.profile import measure
from stitchkit.networks.layout import Layout
from stitchkit.routes.stitch import ARROW
from stitchkit.settings.stitch_config import AnchorSpec
from stitchnet.activations import Activation, run
from stitchnet.data import as_images
from stitchnet.fragments import Fragment, fragments
from stitchnet.joint import JointLayer, fit_joint, map_shapes
from stitchnet.networks import Nets, load_networks

_device: torch.device | None = None


def set_device(device: str | torch.device | None) -> None:
    """Choose where later compositions run: `cpu`, `cuda` or `cuda:N`; with None, where the stitching images are.

    Raises:
        InputError: If there is no such device.
    """
    global _device  # as in the published package
    _device = None if device is None else choose_device(str(device))


class Pool:
    """The fragments, with their inputs on the stitching images, each computed once; arguments as in `Search`.

    Attributes:
        starts: The first fragment of each network.
        followers: All other fragments, in the order of the networks.
    """

    def __init__(self, data: np.ndarray | torch.Tensor, nets: Nets | None = None, *, pretrained: bool = True):
        self.images = as_images(data, what="stitching images")
        if _device is not None:
            self.images = self.images.to(_device)
        if not len(self.images):
            raise InputError("there are no stitching images; at least one is needed")
        if not self.images.isfinite().all():
            raise InputError("a stitching image has values that are not finite; check the preparation of images")
        self.specs: dict[str, AnchorSpec | None] = {}
        self.fragments: list[Fragment] = []
        self._inputs: dict[Fragment, Activation] = {}
        height, width = self.images.shape[2:]
        for label, (model, spec) in load_networks(nets, pretrained=pretrained, img_size=(height, width)).items():
            self.specs[label] = spec
            self._add(label, model.to(self.images.device))
        self.starts = [fragment for fragment in self.fragments if fragment.is_start]
        self.followers = [fragment for fragment in self.fragments if not fragment.is_start]

    def _add(self, label: str, model: torch.nn.Module) -> None:
        try:
            own = fragments(label, model, self.images)
            self.fragments += own
            x = Activation(self.images, Layout("NCHW"))
            for fragment, following in pairwise(own):
                output = Activation(run(fragment.module, x.tensor), fragment.layout)
                x.forget()
                output.shelve()  # a pool of five networks has gigabytes of them
                self._inputs[following] = x = output
            x.forget()
        except InputError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:  # networks raise all of these
            raise InputError(
                f"network '{label}' does not accept images of {list(self.images.shape[1:])}: {one_line(error)}; "
                "use images of another size, or another network"
            ) from error

    def input_of(self, fragment: Fragment) -> Activation:
        """The input of a fragment in its own network; not for starts."""
        return self._inputs[fragment]

    def own_output(self, fragment: Fragment) -> Activation:
        """The output of a fragment in its own network; not for ends."""
        return self._inputs[self.fragments[self.fragments.index(fragment) + 1]]


@dataclass(eq=False)
class Composition:
    """A sequence of fragments, from a start to an end or on the way there."""

    fragment: Fragment
    score: float = 1.0  # product of the scores of all joints
    own_score: float = 1.0  # score of the joint before the last fragment; 1 for a start
    parent: Composition | None = None  # the composition without the last fragment; None for a start

    @cached_property
    def path(self) -> tuple[Composition, ...]:
        """All compositions on the way, from the start to this one."""
        return (*(self.parent.path if self.parent else ()), self)

    @property
    def fragments(self) -> tuple[Fragment, ...]:
        """The fragments in their order."""
        return tuple(step.fragment for step in self.path)

    @property
    def is_uncut(self) -> bool:
        """Whether it is the beginning of a network, without a joint."""
        indices = [(fragment.network, fragment.index) for fragment in self.fragments]
        return indices == [(self.fragment.network, index) for index in range(len(indices))]

    @property
    def name(self) -> str:
        """`network[first:stop] > network[first:stop] > ...`, one slice for fragments that follow each other."""
        slices: list[tuple[str, int, int]] = []
        for fragment in self.fragments:
            network, first, stop = slices[-1] if slices else ("", 0, -1)
            if (network, stop) == (fragment.network, fragment.index):
                slices[-1] = network, first, stop + 1
            else:
                slices.append((fragment.network, fragment.index, fragment.index + 1))
        return ARROW.join(f"{network}[{first}:{stop}]" for network, first, stop in slices)


def uncut(fragments: Sequence[Fragment]) -> list[Composition]:
    """The uncut networks, as compositions, from all fragments of each in their order."""
    whole: list[Composition] = []
    last: Composition | None = None
    for fragment in fragments:
        last = Composition(fragment, parent=None if fragment.is_start else last)
        if fragment.is_end:
            whole.append(last)
    return whole


_BYTES = 2**28


class Outputs:
    """Outputs and joints of compositions: the most recently used are kept, others are recomputed on demand.

    Both methods raise `torch.linalg.LinAlgError` if no map can be fitted to the values before a joint. `budget` limits
    the bytes that are kept.
    """

    def __init__(self, pool: Pool, budget: int = _BYTES):
        self._pool = pool
        self._budget = budget
        self._outputs: OrderedDict[Composition, Activation] = OrderedDict()
        self._joints: OrderedDict[Composition, JointLayer | None] = OrderedDict()

    def __len__(self) -> int:
        """The number of outputs and joints kept."""
        return len(self._outputs) + len(self._joints)

    def of(self, composition: Composition) -> Activation:
        """The output of a composition before its end."""
        if composition.is_uncut:
            return self._pool.own_output(composition.fragment)  # the pool has already run it
        if composition not in self._outputs:
            assert composition.parent is not None
            x, joint = self.of(composition.parent), self.joint(composition)
            # Not folded: the map runs once here, and folding would copy the fragment's weights.
            module = composition.fragment.module
            output = run(module if joint is None else nn.Sequential(joint, module), x.tensor)
            self._outputs[composition] = Activation(output, composition.fragment.layout)
        self._outputs.move_to_end(composition)
        self._trim()
        return self._outputs[composition]

    def joint(self, composition: Composition) -> JointLayer | None:
        """The joint before the last fragment of a composition; None if the fragment gets its usual input."""
        if composition.parent is None or composition.is_uncut:
            return None
        if composition not in self._joints:
            x, y = self.of(composition.parent), self._pool.input_of(composition.fragment)
            # Equal content, as from a twin of the fragment's network, needs no map, which would only add rounding.
            self._joints[composition] = None if x.key == y.key else fit_joint(x, y)
            x.forget()
            y.forget()
        self._joints.move_to_end(composition)
        self._trim()
        return self._joints[composition]

    def _trim(self) -> None:
        """Drop the least recently used, but keep the last one."""
        while len(self) > 2:
            maps = (weight for joint in self._joints.values() if joint for weight in joint.maps)
            if sum(x.nbytes for x in (*maps, *(output.tensor for output in self._outputs.values()))) <= self._budget:
                return
            # Outputs first: recomputing one takes a run, but a joint takes a fit.
            (self._outputs if len(self._outputs) > 1 else self._joints).popitem(last=False)


class Costs:
    """MACs and parameters of compositions, as sums over their fragments, with joints folded as in their networks."""

    def __init__(self, pool: Pool):
        self._pool = pool
        # MACs and parameters of a fragment for one image, then of its first layers per input feature; 0 without any.
        self._known: dict[Fragment, tuple[int, int, int, int]] = {}

    def of(self, composition: Composition) -> tuple[int, int]:
        """MACs and parameters of a composition for one image."""
        fragment, parent = composition.fragment, composition.parent
        if fragment not in self._known:
            x = self._pool.images if parent is None else self._pool.input_of(fragment).tensor
            cost, reader_macs, reader_params = measure(fragment.module, x[:1]), 0, 0
            for reader in fragment.readers(fragment.module):  # they read the input as it is
                reader_macs += measure(reader, x[:1]).flops // reader.weight.shape[1]
                reader_params += reader.weight.numel() // reader.weight.shape[1]
            self._known[fragment] = cost.flops, cost.params, reader_macs, reader_params
        own = self._known[fragment]
        if parent is None:
            return own[:2]
        macs, params = self.of(parent)
        if not self._is_unjoined(composition):
            own = *self._behind(own, self._pool.own_output(parent.fragment), self._pool.input_of(fragment)), 0, 0
        return macs + own[0], params + own[1]

    def _is_unjoined(self, composition: Composition) -> bool:
        """Whether each of its fragments gets its usual input, as in its own network or a twin of it."""
        parent = composition.parent
        if parent is None:
            return True
        before, after = self._pool.own_output(parent.fragment), self._pool.input_of(composition.fragment)
        return before.key == after.key and self._is_unjoined(parent)

    def _behind(self, cost: tuple[int, int, int, int], before: Activation, after: Activation) -> tuple[int, int]:
        """MACs and parameters of a fragment and of the joint before it, from `before` to its usual input."""
        macs, params, reader_macs, reader_params = cost
        is_folded = reader_params > 0
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
