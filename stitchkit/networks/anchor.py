"""An anchor: a pretrained model as a sequence of steps, and the registry of views that make it one."""

from __future__ import annotations

import copy
import importlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.networks.cut.trace import INPUT
from stitchkit.networks.layout import Kind, Layout
from stitchkit.networks.slices import Boundary, Slice
from stitchkit.networks.steps import Steps
from stitchkit.networks.timm_model import TimmModel, as_timm

# The one place where the core names families: model class -> the view of it.
VIEWS = {
    "timm.models.vision_transformer.VisionTransformer": "stitching_deit.anchors.VisionTransformerAnchor",
    "timm.models.deit.VisionTransformerDistilled": "stitching_deit.anchors.VisionTransformerAnchor",
    "timm.models.levit.Levit": "stitching_levit.anchors.LevitAnchor",
    "timm.models.levit.LevitDistilled": "stitching_levit.anchors.LevitAnchor",
    "timm.models.resnet.ResNet": "stitching_resnet_swin.anchors.ResNetAnchor",
    "timm.models.swin_transformer.SwinTransformer": "stitching_swin.anchors.SwinAnchor",
}


@dataclass(frozen=True)
class Stage:
    """Some blocks in timm's module at a path, and the full layout of the output of each."""

    path: str
    depth: int
    layout: Layout


@dataclass(frozen=True)
class ViewStep:
    """One step of a network that has a view.

    Args:
        paths: The modules that it needs, in the order they run, and tensors of the network.
        run: `(model, x) -> x`; without it, the modules run one after the other.
        borders: Names of the first and the last node at which a cut may lie; by default those of `paths`.
    """

    paths: tuple[str, ...]
    run: Callable[[nn.Module, torch.Tensor], torch.Tensor] | None = None
    borders: tuple[str, ...] = ()


class ViewSlice(Slice):
    """A slice that runs modules and methods of its network."""

    _part: nn.Module

    def __init__(self, model: nn.Module, steps: Sequence[ViewStep], start: Boundary | None, stop: Boundary | None):
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

    A route may leave or enter between any two of them. A family's view defines stem, blocks and head; the model
    itself does not change, and its parameters keep timm's names. Cuts inside a step are left to the tracer.

    Args:
        model: A model of the class that the view is registered for.
        label: Its name in stitches.
    """

    model: TimmModel
    stem_children: ClassVar[tuple[str, ...]]
    """Children of the model that the stem needs."""
    head_children: ClassVar[tuple[str, ...]]
    """Children of the model that the head needs."""
    final_norm_children: ClassVar[tuple[str, ...]] = ()
    """Those of `head_children` that make up the final normalisation."""
    class_tokens: ClassVar[tuple[str, ...]] = ()
    """Parameters of the model that are class tokens."""
    stitched_stages: ClassVar[tuple[int, ...]]
    """The stages at which SN-Net was published for the family."""

    def __init__(self, model: nn.Module, *, label: str):
        super().__init__(model)
        self.label = label

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """The kind of layout of the tensors between blocks."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of an input image, `(C, H, W)`: that of the patch embedding, or of the weights if a model takes any."""
        embedding = getattr(self.model, "patch_embed", None)
        height, width = embedding.img_size if embedding else self.pretrained_cfg["input_size"][1:]
        return (self.model.in_chans, height, width)

    @property
    def stage_info(self) -> Sequence[Mapping[str, Any]]:
        """The module of each stage, its channels, and by how much its maps are smaller than images: timm's figures."""
        return self.model.feature_info

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in the order they run."""
        stages = []
        for info in self.stage_info:
            height, width = (-(-side // info["reduction"]) for side in self.input_size[1:])  # rounded up
            positions = (height * width,) if self.kind == "NLC" else (height, width)
            depth = len(_stage_steps(self.model, info["module"]))
            stages.append(Stage(info["module"], depth, Layout(self.kind, info["num_chs"], positions)))
        return tuple(stages)

    @property
    def stem_layout(self) -> Layout:
        """The full layout of the stem's output; by default that of the first stage."""
        return self.stages[0].layout

    @property
    def borders(self) -> tuple[str, str]:
        """Names of the last node of the stem and the first node of the head."""
        return self.stem_children[-1], self.head_children[0]

    @classmethod
    def run_stem(cls, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to the first block's input; by default, the stem's children run one after the other."""
        for name in cls.stem_children:
            x = getattr(model, name)(x)
        return x

    @staticmethod
    def own_names(weights: Mapping[str, torch.Tensor], depths: Sequence[int]) -> dict[str, torch.Tensor]:  # noqa: ARG004
        """Weights under the model's names, given those of a published checkpoint and the blocks of each stage."""
        return dict(weights)

    @cached_property
    def _steps(self) -> tuple[ViewStep, ...]:
        """Stem, blocks and head, which run in turn are the model."""
        run_head = _normalise_pool_and_classify if self.final_norm_children else _pool_and_classify
        stem_end, head_begin = self.borders
        return (
            ViewStep(self.stem_children, self.run_stem, (INPUT, stem_end)),
            *(step for stage in self.stages for step in _stage_steps(self.model, stage.path)),
            ViewStep(self.head_children, run_head, (head_begin,)),
        )

    @cached_property
    def boundaries(self) -> tuple[Boundary, ...]:
        """The boundaries between the steps: entry `j` lies before block `j`, the last one before the head."""
        layouts = (self.stem_layout, *(stage.layout for stage in self.stages for _ in range(stage.depth)))
        named = zip(_boundary_names(self._steps), layouts, strict=True)
        return tuple(Boundary(before, after, found=layout) for (after, before), layout in named)

    def _slice(self, first: int, last: int, start: Boundary | None, stop: Boundary | None) -> Slice:
        return ViewSlice(self.model, self._steps[first:last], start, stop)

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
        if number in (0, len(self) - 1):
            return self[number]
        modules = [self.model.get_submodule(path) for path in self._steps[number].paths]
        if len(modules) == 1 or isinstance(modules[0], nn.Identity):
            return modules[-1]
        # Files of extracted networks have these names.
        return nn.Sequential(OrderedDict(zip(("downsample", "block"), modules, strict=True)))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """All blocks of all stages; down-sampling into a stage runs with its first block."""
        return [self.module(number) for number in range(1, len(self) - 1)]

    @property
    def bare_head(self) -> Slice:
        """The last step without the final normalisation."""
        children = tuple(name for name in self.head_children if name not in self.final_norm_children)
        return ViewSlice(self.model, [ViewStep(children, _pool_and_classify)], self.boundaries[-1], None)

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks per stage."""
        return tuple(stage.depth for stage in self.stages)

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.model.num_classes

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """timm's description of the weights, with the preparation of images."""
        return self.model.pretrained_cfg

    def features(self, x: torch.Tensor, *, until: int | None = None) -> list[torch.Tensor]:
        """The tensors at the `boundaries` for images `[B, C, H, W]`, by default up to the head."""
        outputs = [self[0](x)]
        for block in self.blocks[:until]:
            outputs.append(block(outputs[-1]))
        return outputs


def _pool_and_classify(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return as_timm(model).forward_head(x)


def _normalise_pool_and_classify(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return as_timm(model).forward_head(as_timm(model).norm(x))


def _stage_steps(model: nn.Module, path: str) -> list[ViewStep]:
    """The blocks of a stage: of a sequence, or of a module with `downsample` and `blocks`."""
    stage = model.get_submodule(path)
    if not hasattr(stage, "downsample"):
        return [ViewStep((f"{path}.{name}",)) for name, _ in stage.named_children()]
    first, *rest = [f"{path}.blocks.{name}" for name, _ in stage.get_submodule("blocks").named_children()]
    before = f"{path}.downsample"
    # Down-sampling belongs to the first block: a route that enters at a later one must not run it. Where it changes
    # nothing, it is not a place to cut, and runs in slices because a person may hook it by name.
    borders = (first,) if isinstance(stage.downsample, nn.Identity) else ()
    return [ViewStep((before, first), borders=borders), *(ViewStep((block,)) for block in rest)]


def _boundary_names(steps: Sequence[ViewStep]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The names of the nodes that end at each boundary, and of those that begin there, the smallest first."""
    paths = [step.borders or step.paths for step in steps]
    for number in range(1, len(steps)):
        earlier, later = (list(chain.from_iterable(part)) for part in (paths[:number], paths[number:]))
        yield tuple(_holders(earlier[-1], later)), tuple(_holders(later[0], earlier))


def _holders(path: str, others: Sequence[str]) -> Iterator[str]:
    """A path, and those of the modules around it that contain none of the others."""
    while path and not any(f"{other}.".startswith(f"{path}.") for other in others):
        yield path
        path = path.rpartition(".")[0]


def _view_path(model: nn.Module) -> str:
    """The view registered for a model's class; empty if there is none."""
    # The exact class decides: a subclass may run its blocks in another way.
    return VIEWS.get(f"{type(model).__module__}.{type(model).__qualname__}", "")


def has_view(model: nn.Module) -> bool:
    """Whether a view is registered for the model's class."""
    return bool(_view_path(model))


def view(model: nn.Module, *, label: str) -> Anchor:
    """The anchor of a timm model, by the view registered for its class; `label` is its name in stitches."""
    if not has_view(model):
        kind = type(model).__qualname__
        known = ", ".join(sorted(name.rpartition(".")[2] for name in VIEWS))
        takers = f"; stitchkit job and stitchkit compose take a {kind}" if _can_be_cut(model) else ""
        raise InputError(f"anchor '{label}' is a {kind}; stitchkit can stitch: {known}{takers}")
    module, _, name = _view_path(model).rpartition(".")
    anchor: Anchor = getattr(importlib.import_module(module), name)(model, label=label)
    return anchor


def _can_be_cut(model: nn.Module) -> bool:
    """Whether the tracer finds places at which slices of a network may begin and end."""
    try:
        return bool(Steps(model).boundaries)
    except InputError:
        return False


def steps_of(model: nn.Module) -> Steps:
    """A network as steps: by the view of its class, or traced by torch.fx if there is none."""
    return view(model, label="model") if has_view(model) else Steps(model)
