"""Outputs of compositions on the stitching images, and their joints, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from stitchnet.activations import Activation, run
from stitchnet.composition import Composition
from stitchnet.joint import JointMap, fit_joint, kept
from stitchnet.pool import Pool

_BYTES = 2**28


class Outputs:
    """Outputs and joints of compositions: the most recently used are kept, others are recomputed on demand.

    Args:
        pool: The fragments.
        budget: Limit of the kept bytes.
    """

    def __init__(self, pool: Pool, budget: int = _BYTES):
        self._pool = pool
        self._budget = budget
        self._outputs: OrderedDict[Composition, Activation] = OrderedDict()
        self._joints: OrderedDict[Composition, JointMap | None] = OrderedDict()

    def __len__(self) -> int:
        """The number of outputs and joints kept."""
        return len(self._outputs) + len(self._joints)

    def of(self, composition: Composition) -> Activation:
        """The output of a composition that has not reached an end.

        Raises:
            torch.linalg.LinAlgError: If a joint cannot be fitted.
        """
        if composition.is_uncut:
            return self._pool.own_output(composition.fragment)  # the pool has already run it
        if composition not in self._outputs:
            assert composition.parent is not None
            x = self.of(composition.parent)
            joint = self._joint(composition, x)
            # Not folded: the map runs once here, and folding would copy the fragment's weights.
            modules = [] if joint is None else [kept(joint)]
            output = run(nn.Sequential(*modules, composition.fragment.module), x.tensor)
            self._outputs[composition] = Activation(output, composition.fragment.layout)
        self._outputs.move_to_end(composition)
        self._trim()
        return self._outputs[composition]

    def joint(self, composition: Composition) -> JointMap | None:
        """The joint before the last fragment of a composition; None if the fragment gets its usual input.

        Raises:
            torch.linalg.LinAlgError: If no map can be fitted to the values of the previous output.
        """
        if composition.parent is None or composition.is_uncut:
            return None
        if composition in self._joints:
            return self._joints[composition]
        return self._joint(composition, self.of(composition.parent))

    def _joint(self, composition: Composition, x: Activation) -> JointMap | None:
        if composition not in self._joints:
            y = self._pool.input_of(composition.fragment)
            # Equal content, as from a twin of the fragment's network, needs no map, which would only add rounding.
            self._joints[composition] = None if x.key == y.key else fit_joint(x, y)
            x.forget()
            y.forget()
        self._joints.move_to_end(composition)
        joint = self._joints[composition]
        self._trim()
        return joint

    def _trim(self) -> None:
        """Drop the least recently used, but keep the last one."""
        total = sum(output.num_bytes for output in self._outputs.values())
        total += sum(joint.num_bytes for joint in self._joints.values() if joint is not None)
        while total > self._budget and len(self) > 2:
            # Outputs first: recomputing one takes a run, but a joint takes a fit.
            if len(self._outputs) > 1:
                total -= self._outputs.popitem(last=False)[1].num_bytes
            else:
                joint = self._joints.popitem(last=False)[1]
                total -= joint.num_bytes if joint is not None else 0
