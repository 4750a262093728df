"""The tensors between parts, traced with their formats on the meta device, without computing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from stitchkit.assembly.parts.part import Conversion, Part
from stitchkit.engine.checkpoint_schema import in_short
from stitchkit.errors import InputError, one_line, prefixed
from stitchkit.networks.layout import Layout, convert
from stitchkit.networks.mode import evaluating

_MOST_NUMBERS = 2**31  # of one tensor of one image: 8 GiB


@dataclass(frozen=True)
class PassingTensor:
    """A tensor on the meta device between two parts, or a list of them; its format, without sizes, if known."""

    value: Any
    format: Layout | None

    def __post_init__(self) -> None:
        for value in self.value if isinstance(self.value, list | tuple) else [self.value]:
            if isinstance(value, torch.Tensor) and value[:1].numel() > _MOST_NUMBERS:
                raise InputError(f"{list(value.shape[1:])} are more than {_MOST_NUMBERS:,} numbers for each image")

    @property
    def tensor(self) -> torch.Tensor:
        """The one tensor."""
        if isinstance(self.value, torch.Tensor):
            return self.value
        raise InputError(f"it gets {self} instead of one tensor")

    @property
    def full_format(self) -> Layout | None:
        """The format with the sizes of the tensor."""
        return None if self.format is None else self.format.sized(self.tensor)

    def __str__(self) -> str:
        if isinstance(self.value, torch.Tensor):
            return str(self.full_format or list(self.value.shape[1:]))
        return f"{len(self.value)} tensors" if isinstance(self.value, list | tuple) else type(self.value).__name__


def enter(
    flow: PassingTensor, target: Layout | None, takes: Sequence[str], class_token: str
) -> tuple[Conversion, PassingTensor]:
    """The conversion of a tensor to the input format of a part, and the converted tensor.

    A tensor of unknown format counts as one of the target format if it has as many axes. `target` is None if the part
    accepts formats as they come: those that `takes` names, or any if it is empty.
    """
    source = flow.format
    if target is None:
        if takes and source is not None and source.name not in takes:
            raise InputError(f"it gets {flow}, but accepts {' or '.join(takes)}; declare the in_format to convert to")
        return nn.Identity(), flow
    x = flow.tensor
    if source is None:
        if x.ndim != target.rank:
            raise InputError(
                f"it gets a tensor {flow} of unknown format, but accepts {target}; declare the out_format of the part "
                "before"
            )
        source = target.bare
    entry = partial(convert, source=source, target=target, class_token=class_token)
    with prefixed(f"it gets {flow}, but accepts {target}: "):
        x = entry(x)
    # A later run may have images of another size than declared, so this conversion stays.
    fits_always = source.bare == target.bare and target.positions is None
    return nn.Identity() if fits_always else entry, PassingTensor(x, target.bare)


def run(part: Part, flow: PassingTensor) -> tuple[PassingTensor, bool]:
    """The output of a part, and whether the part changes its input in place; its weights are not read."""
    state = {name: value.to("meta") for name, value in (*part.named_parameters(), *part.named_buffers())}
    layers: list[nn.Module] = []  # where one fails, it shows what it expects: Conv2d(8, 16, ...)
    hook = register_module_forward_pre_hook(lambda module, _: layers.append(module))
    before = flow.tensor._version  # torch counts changes in place here, on the meta device too
    try:
        with evaluating(part), torch.no_grad():
            value = torch.func.functional_call(part, state, (flow.tensor,))
    except Exception as error:  # torch and the models raise many types
        layer, size_of_images = layers[-1], tuple(flow.tensor.shape[-2:])
        size = getattr(layer, "img_size", None)  # timm's patch embeddings accept only this one
        if size is not None and tuple(size) != size_of_images:
            raise InputError(
                f"it gets {flow}, but its model takes images of {list(size)}; set image_size in "
                f"train_config.data_preprocessing to {list(size)}, or img_size in this part to {list(size_of_images)}"
            ) from error
        where = type(layer).__name__ if any(layer.children()) else in_short(repr(layer))
        raise InputError(
            f"it gets {flow} and fails on it in {where}: {one_line(error)}; declare its in_format, or insert a part "
            "before it, such as a SimpleAdapter"
        ) from error
    finally:
        hook.remove()
    return replace(flow, value=value), flow.tensor._version != before


def leave(flow: PassingTensor, declared: Layout | None) -> PassingTensor:
    """The output of a part with its format: the declared one, or that of the input if it has as many axes.

    A declared size is not compared with the tensor: slices may run at other sizes than their network.
    """
    if not isinstance(flow.value, torch.Tensor):
        return PassingTensor(flow.value, None)
    x = flow.value
    if declared is not None:
        if x.ndim != declared.rank:
            raise InputError(f"it returns {list(x.shape[1:])}, but out_format is {declared} {declared.axes}")
        actual = declared.sized(x)
        if declared.channels not in (None, actual.channels):
            raise InputError(f"it returns {actual}, but out_format is {declared}; correct one of them")
        return PassingTensor(x, declared.bare)
    if x.ndim == 2:
        return PassingTensor(x, Layout("vector"))
    # Parts without their own format, such as functions, mostly keep the meaning of the axes.
    known = flow.format if flow.format is not None and x.ndim == flow.format.rank else None
    return PassingTensor(x, known)
