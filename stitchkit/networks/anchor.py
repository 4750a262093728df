"""An anchor: a pretrained model as a sequence of steps, and the registry of views that make it one."""

from __future__ import annotations

import copy
import importlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.networks.layout import Layout

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
    """Blocks with tensors of one layout between them.

    Args:
        depth: Number of blocks.
        layout: The full layout of what leaves each of them.
    """

    depth: int
    layout: Layout


class Piece(nn.Module):
    """Some children of a model and a function that runs them.

    The children and their parameters are the model's own, under their own names; all others are left out. A piece
    is cheap to make and is made anew whenever it is needed, so that it never goes stale.

    Args:
        model: The model whose children are taken.
        children: Names of the parameters, buffers and modules directly under `model` that `run` needs.
        run: `(model, x) -> x`.
    """

    def __init__(
        self,
        model: nn.Module,
        children: Collection[str],
        run: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    ):
        super().__init__()
        part = copy.copy(model)
        for table in ("_parameters", "_buffers", "_modules"):
            kept = {name: child for name, child in getattr(model, table).items() if name in children}
            part.__dict__[table] = kept
        self.part = part
        self.run = run
        self.training = model.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the function on the children."""
        return self.run(self.part, x)


class Anchor(ABC):
    """A pretrained model as steps: the stem, the blocks of its stages, the head.

    One tensor passes between neighbouring steps, so a route may leave or enter at any of them. A family's view says
    what stem, blocks and head are; the model itself is untouched and its parameters keep timm's names.

    Args:
        model: A model of the class that the view is registered for.
        label: What stitches call it.
        source: Where its weights come from, for reports.
    """

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

    def __init__(self, model: nn.Module, *, label: str, source: str = ""):
        self.model = model
        self.label = label
        self.source = source

    @property
    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The stages in the order they run."""

    @property
    @abstractmethod
    def input_size(self) -> tuple[int, int, int]:
        """Size of an input image, `(C, H, W)`."""

    @property
    @abstractmethod
    def stage_modules(self) -> Sequence[nn.Module]:
        """timm's modules of the stages: sequences of blocks, or modules with `downsample` and `blocks`."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """All blocks of all stages; what down-samples into a stage runs with its first block."""
        return [step for stage in self.stage_modules for step in _stage_steps(stage)]

    @staticmethod
    @abstractmethod
    def run_stem(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to the first block's input."""

    @staticmethod
    def own_names(weights: Mapping[str, torch.Tensor], depths: Sequence[int]) -> dict[str, torch.Tensor]:  # noqa: ARG004
        """Weights under the model's names, given those of a published checkpoint; the model's own names stay.

        Args:
            weights: Of one model.
            depths: Blocks of each of its stages.
        """
        return dict(weights)

    @property
    def stem_layout(self) -> Layout:
        """The full layout of what leaves the stem; that of the first stage unless a view says otherwise."""
        return self.stages[0].layout

    @property
    def boundaries(self) -> tuple[Layout, ...]:
        """The full layouts of what passes between the steps: entry `j` enters block `j`, the last one the head."""
        return (self.stem_layout, *(stage.layout for stage in self.stages for _ in range(stage.depth)))

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks per stage."""
        return tuple(stage.depth for stage in self.stages)

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return int(self.model.num_classes)  # type: ignore[arg-type]

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """timm's description of the weights: how images are prepared for them."""
        return self.model.pretrained_cfg  # type: ignore[return-value]

    @property
    def stem(self) -> Piece:
        """The first step."""
        return Piece(self.model, self.stem_children, self.run_stem)

    def head(self, *, final_norm: bool = True) -> Piece:
        """The last step, on request without the final normalisation."""
        if not self.final_norm_children:
            return Piece(self.model, self.head_children, _pool_and_classify)
        if final_norm:
            return Piece(self.model, self.head_children, _normalise_pool_and_classify)
        children = [name for name in self.head_children if name not in self.final_norm_children]
        return Piece(self.model, children, _pool_and_classify)

    @property
    def steps(self) -> list[nn.Module]:
        """Stem, blocks and head: run one after the other they are the model."""
        return [self.stem, *self.blocks, self.head()]

    def features(self, x: torch.Tensor, *, until: int | None = None) -> list[torch.Tensor]:
        """What passes between the steps, of the layouts that `boundaries` lists.

        Args:
            x: Images `[B, C, H, W]`.
            until: The last entry wanted; by default that of the head.
        """
        outputs = [self.stem(x)]
        for block in self.blocks[:until]:
            outputs.append(block(outputs[-1]))
        return outputs


def _pool_and_classify(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model.forward_head(x)  # type: ignore[operator,no-any-return]


def _normalise_pool_and_classify(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model.forward_head(model.norm(x))  # type: ignore[operator,no-any-return]


def _stage_steps(stage: nn.Module) -> list[nn.Module]:
    """The blocks of a stage; a route that enters at a later block than the first has no need of its down-sampling."""
    if not hasattr(stage, "downsample"):
        return list(stage.children())
    downsample = stage.get_submodule("downsample")
    first, *rest = stage.get_submodule("blocks").children()
    if not isinstance(downsample, nn.Identity):
        first = nn.Sequential(OrderedDict(downsample=downsample, block=first))
    return [first, *rest]


def patched_input_size(model: nn.Module) -> tuple[int, int, int]:
    """Size of an input image, `(C, H, W)`, of a model with timm's patch embedding."""
    height, width = model.patch_embed.img_size  # type: ignore[union-attr,misc]
    return (model.in_chans, height, width)  # type: ignore[return-value]


def has_view(model: nn.Module) -> bool:
    """Whether a view is registered for the model's class."""
    return _class_path(model) in VIEWS


def _class_path(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


def view(model: nn.Module, *, label: str, source: str = "") -> Anchor:
    """The anchor that a model makes, by the view registered for its class.

    Dispatch is on the exact class: a subclass may run its blocks in another way.

    Args:
        model: A timm model.
        label: What stitches call it.
        source: Where its weights come from.

    Raises:
        InputError: If no view is registered for the class.
    """
    if not has_view(model):
        known = ", ".join(sorted(name.rpartition(".")[2] for name in VIEWS))
        raise InputError(f"anchor '{label}' is a {type(model).__qualname__}; stitchkit can stitch: {known}")
    module, _, name = VIEWS[_class_path(model)].rpartition(".")
    anchor: Anchor = getattr(importlib.import_module(module), name)(model, label=label, source=source)
    return anchor
