"""An anchor: a pretrained model as steps that routes may leave and enter."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Any, ClassVar, TypeAlias

import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.networks.cut.tracer import INPUT, paths_to
from stitchkit.networks.slices import Boundary, Slice
from stitchkit.networks.steps import Steps
from stitchkit.networks.timm_model import TimmModel, as_timm, resize_classifier

Run: TypeAlias = Callable[[nn.Module, torch.Tensor], torch.Tensor]
"""A part of a network: what it computes of a tensor, given the network."""


@dataclass(frozen=True)
class AnchorStep:
    """One step of an anchor.

    Args:
        paths: The modules that it needs, in the order they run, and tensors of the network.
        run: `(model, x) -> x`; without it, the modules run one after the other.
        borders: Names of the first and the last node that may be cut; by default those of `paths`.
    """

    paths: tuple[str, ...]
    run: Run | None = None
    borders: tuple[str, ...] = ()


class AnchorSlice(Slice):
    """A slice that runs modules and methods of its network."""

    _part: nn.Module

    def __init__(self, model: nn.Module, steps: Sequence[AnchorStep], start: Boundary | None, stop: Boundary | None):
        super().__init__(model, start, stop)
        self._steps = tuple(steps)
        for path in dict.fromkeys(path for step in steps for path in step.paths):
            self._take(model, path)
        # Stems and heads call methods of timm's classes on a copy of the model that shares the tables of this slice, so
        # that `to` and `load_state_dict` reach both. As a child module, it would put a prefix before all names.
        part = copy.copy(model)
        for table in ("_parameters", "_buffers", "_modules"):
            part.__dict__[table] = self.__dict__[table]
        object.__setattr__(self, "_part", part)

    def _in_mode(self) -> nn.Module:
        """The network with only what these steps need, in the mode of this slice."""
        if self._part.training != self.training:  # compilers warn about attributes set in `forward`
            self._part.training = self.training
        return self._part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the steps."""
        part = self._in_mode()
        for step in self._steps:
            if step.run is not None:
                x = step.run(part, x)
            else:
                for path in step.paths:
                    x = self.get_submodule(path)(x)
        return x


@dataclass(frozen=True)
class HeadParts:
    """The two parts of a head, which are timm's `forward_features` after the last block, and `forward_head`.

    Args:
        finish: The first part, such as the final normalisation; None if nothing runs there, or it is not known.
        has_forward_head: Whether the network's own `forward_head` is the second part; otherwise it is the whole head.
        pre_logits: The whole head up to the classifier, if that is known of a network without `forward_head`.
    """

    finish: Run | None = None
    has_forward_head: bool = True
    pre_logits: Run | None = None


class HeadSlice(AnchorSlice):
    """The last step of a network, whole or in two parts."""

    # Names of methods must not be those of a child of some network.
    def __init__(self, anchor: Anchor, step: AnchorStep, parts: HeadParts):
        super().__init__(anchor.model, [step], anchor.boundaries[-1], None)
        for path in _around(anchor.model, step.paths) if parts.has_forward_head else ():
            self._take(anchor.model, path)
        self._parts = parts
        self._label = anchor.label
        self.num_classes = anchor.num_classes

    @property
    def num_features(self) -> int:
        """Channels of what `run_features` gives, as timm states it."""
        if self._parts.has_forward_head:
            return as_timm(self._part).num_features
        assert self.start is not None, "a head begins after the last block"
        return self.start.layout.width

    def run_features(self, x: torch.Tensor) -> torch.Tensor:
        """The output of the last block to tokens `[B, N, C]` or maps, normalised if that comes before the pooling."""
        return x if self._parts.finish is None else self._parts.finish(self._in_mode(), x)

    def run_head(self, x: torch.Tensor, *, pre_logits: bool) -> torch.Tensor:
        """These to logits `[B, num_classes]`, or to the feature `[B, C]` that enters the classifier."""
        output: torch.Tensor
        if self._parts.has_forward_head:
            output = as_timm(self._in_mode()).forward_head(x, pre_logits=pre_logits)
        elif not pre_logits or not self.num_classes:
            output = self(x)
        elif self._parts.pre_logits is not None:
            output = self._parts.pre_logits(self._in_mode(), x)
        else:
            raise InputError(
                f"anchor '{self._label}' does not end in a classifier that is known, and so has no pre_logits; build "
                "the networks with num_classes=0, and a stitch gives its feature"
            )
        return output

    def replace_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one, or remove it with 0 classes."""
        if self._parts.has_forward_head or self.num_classes:
            resize_classifier(self._part, num_classes)
        if getattr(self._part, "num_classes", None) != num_classes:
            raise InputError(
                f"anchor '{self._label}' has no classifier that could be replaced, and does not say where one belongs; "
                "put a layer of your own behind the network"
            )
        self.num_classes = num_classes

    @property
    def single_module(self) -> nn.Module:
        """The module of the network that is this whole step."""
        (step,) = self._steps
        (path,) = step.paths
        return self.get_submodule(path)


def _around(model: nn.Module, paths: Sequence[str]) -> Iterator[str]:
    """Paths of the largest modules around some that have no further weights; `forward_head` may call them."""
    inner = [path for path in paths if "." in path]  # sequences are traced into
    own = {id(weight) for path in inner for weight in _weights(attrgetter(path)(model))}
    for path in inner:
        wider = (name for name in paths_to(path)[:-1] if own.issuperset(map(id, _weights(model.get_submodule(name)))))
        yield from islice(wider, 1)


def _weights(part: object) -> list[torch.Tensor]:
    if isinstance(part, nn.Module):
        return [*part.parameters(), *part.buffers()]
    return [part] if isinstance(part, torch.Tensor) else []


class Anchor(Steps, ABC):
    """A pretrained model as steps: the stem, the blocks of its stages, the head.

    A route may leave or enter between any two of them: entry `j` of `boundaries` lies before block `j`, the last one
    before the head. The model itself does not change, and its parameters keep their names. Cuts inside a step are left
    to the tracer.

    Args:
        model: The network.
        label: Its name in stitches.
    """

    model: TimmModel
    class_tokens: ClassVar[tuple[str, ...]] = ()
    """Parameters of the model that are class tokens."""

    def __init__(self, model: nn.Module, *, label: str):
        super().__init__(model)
        self.label = label

    @property
    @abstractmethod
    def _steps(self) -> tuple[AnchorStep, ...]:
        """Stem, blocks and head, which run in turn are the model."""

    @property
    @abstractmethod
    def depths(self) -> tuple[int, ...]:
        """Blocks per stage."""

    @property
    @abstractmethod
    def stitched_stages(self) -> tuple[int, ...]:
        """The stages to stitch unless a configuration says otherwise."""

    @property
    @abstractmethod
    def input_size(self) -> tuple[int, int, int]:
        """Size of an input image, `(C, H, W)`."""

    def blank_image(self) -> torch.Tensor:
        """Zeros `[1, C, H, W]`, of the weights' type and where these are."""
        weights = next(self.model.parameters())
        return torch.zeros(1, *self.input_size, device=weights.device, dtype=weights.dtype)

    @property
    @abstractmethod
    def _head_parts(self) -> HeadParts:
        """The parts of the last step."""

    @property
    def head(self) -> HeadSlice:
        """The last step."""
        return HeadSlice(self, self._steps[-1], self._head_parts)

    @property
    @abstractmethod
    def bare_head(self) -> HeadSlice:
        """The last step without the final normalisation."""

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.model.num_classes

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """timm's description of the weights, with the preparation of images."""
        return self.model.pretrained_cfg

    def _slice(self, first: int, last: int, start: Boundary | None, stop: Boundary | None) -> Slice:
        if first == len(self) - 1:
            return self.head
        return AnchorSlice(self.model, self._steps[first:last], start, stop)

    def between(self, block_input: str | None = None, block_output: str | Sequence[str] | None = None) -> Slice:
        """The slice from where one node begins to where another ends."""
        if isinstance(block_output, str | None):
            first: dict[str | None, int] = {None: 0, INPUT: 0}
            last: dict[str | None, int] = {None: len(self)}
            for number, boundary in enumerate(self.boundaries, start=1):
                first |= dict.fromkeys(boundary.before, number)
                last |= dict.fromkeys(boundary.after, number)
            if block_input in first and block_output in last and first[block_input] < last[block_output]:
                return self[first[block_input] : last[block_output]]
        return super().between(block_input, block_output)  # inside a block, or wrong: the tracer finds out

    def module(self, number: int) -> nn.Module:
        """The module that runs one step.

        A block is the model's own module: a slice around it would cost time in every pass, and the compiler and the
        profiler would not see that blocks are alike.
        """
        step = self._steps[number]
        if step.run is not None:
            return self[number]
        modules = [self.model.get_submodule(path) for path in step.paths]
        if len(modules) == 1 or isinstance(modules[0], nn.Identity):
            return modules[-1]
        # Files of extracted networks have these names.
        return nn.Sequential(OrderedDict(zip(("downsample", "block"), modules, strict=True)))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """All blocks of all stages; down-sampling into a stage runs with its first block."""
        return [self.module(number) for number in range(1, len(self) - 1)]

    @property
    def block_modules(self) -> list[nn.Module]:
        """The model's own modules that the blocks run."""
        modules = dict(self.model.named_modules())
        return [modules[path] for step in self._steps[1:-1] for path in step.paths if path in modules]

    def features(self, x: torch.Tensor, *, until: int | None = None) -> list[torch.Tensor]:
        """The tensors at the `boundaries` for images `[B, C, H, W]`, by default up to the head."""
        outputs = [self[0](x)]
        for block in self.blocks[:until]:
            outputs.append(block(outputs[-1]))
        return outputs

    @staticmethod
    def own_names(weights: Mapping[str, torch.Tensor], depths: Sequence[int]) -> dict[str, torch.Tensor]:  # noqa: ARG004
        """Weights under the model's names, given those of a published checkpoint and the blocks of each stage."""
        return dict(weights)
