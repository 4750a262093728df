"""What compositions give on the stitching images, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from stitchnet.activations import Activation, run
from stitchnet.composition import Composition
from stitchnet.joint import fit_joint, kept
from stitchnet.pool import Pool

_BYTES = 2**28


class Outputs:
    """Outputs of compositions: those used last are kept, others are computed again from what they begin with.

    Args:
        pool: The fragments.
        budget: Bytes that may be kept.
    """

    def __init__(self, pool: Pool, budget: int = _BYTES):
        self._pool = pool
        self._budget = budget
        self._kept: OrderedDict[Composition, Activation] = OrderedDict()

    def of(self, composition: Composition) -> Activation:
        """The output of a composition that has not reached an end."""
        if composition.is_uncut:
            return self._pool.own_output(composition.fragment)
        if composition not in self._kept:
            self._kept[composition] = self._compute(composition)
        self._kept.move_to_end(composition)
        while len(self._kept) > 1 and sum(output.num_bytes for output in self._kept.values()) > self._budget:
            self._kept.popitem(last=False)
        return self._kept[composition]

    def join(self, composition: Composition) -> None:
        """Fit the joint before the last fragment, if it needs one and has none yet.

        Raises:
            torch.linalg.LinAlgError: If what comes before gives values that no map can be fitted to.
        """
        if composition.parent is None or composition.is_joined:
            return
        x, y = self.of(composition.parent), self._pool.input_of(composition.fragment)
        composition.joint = None if x.key == y.key else fit_joint(x, y)
        composition.is_joined = True
        x.forget()
        y.forget()

    def _compute(self, composition: Composition) -> Activation:
        assert composition.parent is not None
        self.join(composition)
        x = self.of(composition.parent).tensor
        modules = [kept(composition.joint)] if composition.joint else []
        return Activation(run(nn.Sequential(*modules, composition.fragment.module), x), composition.fragment.form)
