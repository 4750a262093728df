"""An anchor: a pretrained model as steps that routes may leave and enter."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from stitchkit.networks.cut.tracer import INPUT
from stitchkit.networks.slices import Boundary, Slice
from stitchkit.networks.steps import Steps
from stitchkit.networks.timm_model import TimmModel


@dataclass(frozen=True)
class AnchorStep:
    """One step of an anchor.

    Args:
        paths: The modules that it needs, in the order they run, and tensors of the network.
        run: `(model, x) -> x`; without it, the modules run one after the other.
        borders: Names of the first and the last node at which a cut may lie; by default those of `paths`.
    """

    paths: tuple[str, ...]
    run: Callable[[nn.Module, torch.Tensor], torch.Tensor] | None = None
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the steps."""
        if self._part.training != self.training:  # compilers warn about attributes set in `forward`
            self._part.training = self.training
        for step in self._steps:
            if step.run is not None:
                x = step.run(self._part, x)
            else:
                for path in step.paths:
                    x = self.get_submodule(path)(x)
        return x


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
        """The stages at which it is stitched unless a configuration says otherwise."""

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
    def bare_head(self) -> Slice:
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
        return AnchorSlice(self.model, self._steps[first:last], start, stop)

    def between(self, block_input: str | None = None, block_output: str | Sequence[str] | None = None) -> Slice:
        """The slice from where one node begins to where another ends."""
        if isinstance(block_output, str | None):
            first: dict[str | None, int] = {None: 0, INPUT: 0}
            last: dict[str | None, int] = {None: len(self)}
            for number, place in enumerate(self.boundaries, start=1):
                first |= dict.fromkeys(place.before, number)
                last |= dict.fromkeys(place.after, number)
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
