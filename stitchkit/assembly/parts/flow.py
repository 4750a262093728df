"""The tensors between parts, followed on the meta device with their formats, without computing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from stitchkit.assembly.parts.part import Part, Reformat
from stitchkit.errors import InputError
from stitchkit.networks.layout import Layout
from stitchkit.networks.mode import evaluating


@dataclass(frozen=True)
class PassingTensor:
    """A tensor on the meta device between two parts, or a list of them; its format, without sizes, if it is known."""

    value: Any
    format: Layout | None

    @property
    def tensor(self) -> torch.Tensor:
        """The one tensor.

        Raises:
            InputError: If there are several.
        """
        if isinstance(self.value, torch.Tensor):
            return self.value
        count = f"{len(self.value)} tensors" if isinstance(self.value, list | tuple) else type(self.value).__name__
        raise InputError(f"it gets {count}, and takes one tensor")

    @property
    def full_format(self) -> Layout | None:
        """The format with the sizes that the tensor has."""
        return None if self.format is None else self.format.sized(self.tensor)

    def __str__(self) -> str:
        return str(self.full_format or list(self.tensor.shape[1:]))


def enter(
    flow: PassingTensor, target: Layout | None, takes: Sequence[str], class_token: str
) -> tuple[nn.Module, PassingTensor]:
    """The change that brings a tensor into the format that a part takes, and the tensor after it.

    A tensor of unknown format counts as one of the kind that is wanted, if it has as many axes.

    Args:
        target: The format that the part declares; None if it takes what comes.
        takes: Names of formats that it takes as they come; empty for any.

    Raises:
        InputError: If it cannot be brought into that format.
    """
    x, source = flow.tensor, flow.format
    if target is None:
        if takes and source is not None and source.name not in takes:
            raise InputError(f"it gets {flow}, and takes {' or '.join(takes)}; declare the in_format to convert it to")
        return nn.Identity(), flow
    if source is None:
        if x.ndim != target.rank:
            raise InputError(
                f"it gets a tensor {flow} of unknown format, and takes {target}; declare the out_format of the part "
                "before"
            )
        source = target.bare
    entry = Reformat(source, target, class_token)
    try:
        x = entry(x)
    except InputError as error:
        raise InputError(f"it gets {flow}, and takes {target}: {error}") from error
    # A declared size may still differ from the images of a later run, so its change of format stays.
    fits_always = source.bare == target.bare and target.positions is None
    return nn.Identity() if fits_always else entry, PassingTensor(x, target.bare)


def run(part: Part, flow: PassingTensor) -> tuple[PassingTensor, bool]:
    """The output of a part, and whether the part changes its input in place.

    The part's weights are neither read nor changed, so they may be anywhere.
    """
    state = {name: value.to("meta") for name, value in (*part.named_parameters(), *part.named_buffers())}
    before = flow.tensor._version  # torch counts changes in place there, on the meta device too
    with evaluating(part), torch.no_grad():
        value = torch.func.functional_call(part, state, (flow.tensor,))
    return replace(flow, value=value), flow.tensor._version != before


def leave(flow: PassingTensor, declared: Layout | None) -> PassingTensor:
    """The output of a part with its format: as declared, else that of the input if it has as many axes.

    A declared size is not checked against the tensor: slices also run at other sizes than those of their network.

    Raises:
        InputError: If the tensor has other axes or channels than declared.
    """
    if not isinstance(flow.value, torch.Tensor):
        return PassingTensor(flow.value, None)
    x = flow.value
    if declared is not None:
        if x.ndim != declared.rank:
            raise InputError(f"it gives {list(x.shape[1:])}, and out_format says {declared} {declared.axes}")
        found = declared.sized(x)
        if declared.channels not in (None, found.channels):
            raise InputError(f"it gives {found}, and out_format says {declared}; correct the one or the other")
        return PassingTensor(x, declared.bare)
    if x.ndim == 2:
        return PassingTensor(x, Layout("vector"))
    # Parts without a format of their own, such as functions, mostly keep the meaning of the axes.
    known = flow.format if flow.format is not None and x.ndim == flow.format.rank else None
    return PassingTensor(x, known)
