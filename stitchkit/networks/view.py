"""A view: what stem, blocks and head are in the models of one class, written by hand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import nn

from stitchkit.networks.anchor import Anchor, AnchorStep, HeadParts, HeadSlice
from stitchkit.networks.cut.tracer import INPUT
from stitchkit.networks.layout import Kind, Layout
from stitchkit.networks.slices import Boundary
from stitchkit.networks.timm_model import as_timm


@dataclass(frozen=True)
class Stage:
    """Some blocks in timm's module at a path, and the full layout of the output of each."""

    path: str
    depth: int
    layout: Layout


class View(Anchor):
    """An anchor whose class of models has stem, blocks and head by definition."""

    stem_children: ClassVar[tuple[str, ...]]
    """Children of the model that the stem needs."""
    head_children: ClassVar[tuple[str, ...]]
    """Children of the model that the head needs."""
    final_norm_children: ClassVar[tuple[str, ...]] = ()
    """Those of `head_children` that make up the final normalisation."""

    image_sides: tuple[int, int] | None = None
    """Height and width of images, if the network takes any; others keep their own."""

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """The kind of layout of the tensors between blocks."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of an input image, `(C, H, W)`: that of the patch embedding, or of the weights if a model takes any."""
        embedding = getattr(self.model, "patch_embed", None)
        height, width = embedding.img_size if embedding else self.image_sides or self.pretrained_cfg["input_size"][1:]
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

    @cached_property
    def _steps(self) -> tuple[AnchorStep, ...]:
        run_head = _normalise_pool_and_classify if self.final_norm_children else _pool_and_classify
        stem_end, head_begin = self.borders
        return (
            AnchorStep(self.stem_children, self.run_stem, (INPUT, stem_end)),
            *(step for stage in self.stages for step in _stage_steps(self.model, stage.path)),
            AnchorStep(self.head_children, run_head, (head_begin,)),
        )

    @cached_property
    def boundaries(self) -> tuple[Boundary, ...]:
        """The boundaries between the steps: entry `j` lies before block `j`, the last one before the head."""
        layouts = (self.stem_layout, *(stage.layout for stage in self.stages for _ in range(stage.depth)))
        paths, boundaries = [step.borders or step.paths for step in self._steps], []
        for number, layout in enumerate(layouts, start=1):
            earlier, later = (list(chain.from_iterable(part)) for part in (paths[:number], paths[number:]))
            after, before = _holders(earlier[-1], later), _holders(later[0], earlier)
            boundaries.append(Boundary(tuple(before), tuple(after), found=layout))
        return tuple(boundaries)

    @property
    def _head_parts(self) -> HeadParts:
        return HeadParts(_normalise if self.final_norm_children else None)

    @property
    def bare_head(self) -> HeadSlice:
        """The last step without the final normalisation."""
        children = tuple(name for name in self.head_children if name not in self.final_norm_children)
        return HeadSlice(self, AnchorStep(children, _pool_and_classify), HeadParts())

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks per stage."""
        return tuple(stage.depth for stage in self.stages)


def _pool_and_classify(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return as_timm(model).forward_head(x)


def _normalise(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = as_timm(model).norm(x)
    return output


def _normalise_pool_and_classify(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return _pool_and_classify(model, _normalise(model, x))


def _stage_steps(model: nn.Module, path: str) -> list[AnchorStep]:
    """The blocks of a stage: of a sequence, or of a module with `downsample` and `blocks`."""
    stage = model.get_submodule(path)
    if not hasattr(stage, "downsample"):
        return [AnchorStep((f"{path}.{name}",)) for name, _ in stage.named_children()]
    first, *rest = [f"{path}.blocks.{name}" for name, _ in stage.get_submodule("blocks").named_children()]
    before = f"{path}.downsample"
    # Down-sampling belongs to the first block: a route that enters at a later one must not run it. Where it changes
    # nothing, it is not a place to cut, and runs in slices because a person may hook it by name.
    borders = (first,) if isinstance(stage.downsample, nn.Identity) else ()
    return [AnchorStep((before, first), borders=borders), *(AnchorStep((block,)) for block in rest)]


def _holders(path: str, others: Sequence[str]) -> Iterator[str]:
    """A path, and those of the modules around it that contain none of the others."""
    while path and not any(f"{other}.".startswith(f"{path}.") for other in others):
        yield path
        path = path.rpartition(".")[0]
