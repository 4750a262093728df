"""Outputs of compositions on the stitching images, and their joints, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from stitchnet.activations import Activation, run
from stitchnet.composition import Composition
from stitchnet.joint import JointLayer, fit_joint
from stitchnet.pool import Pool

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
        """The output of a composition that has not reached an end."""
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
        while len(self) > 2 and self._num_bytes() > self._budget:
            # Outputs first: recomputing one takes a run, but a joint takes a fit.
            (self._outputs if len(self._outputs) > 1 else self._joints).popitem(last=False)

    def _num_bytes(self) -> int:
        tensors = [output.tensor for output in self._outputs.values()]
        for joint in self._joints.values():
            tensors += joint.maps if joint else []
        return sum(tensor.nbytes for tensor in tensors)
