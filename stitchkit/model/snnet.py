"""SN-Net: several anchors, the stitching layers between them, and every route through both."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, overload

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stitchkit.errors import InputError
from stitchkit.model.backbone import Backbone
from stitchkit.model.heads.route_head import RouteHead
from stitchkit.model.layer import StitchLayer
from stitchkit.model.levels import LevelLayers, levels_along
from stitchkit.model.onepass import OnePass
from stitchkit.model.route_network import ExtractedRoute, RouteFeatures, exported, named
from stitchkit.model.statistics import RouteStatistics
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.data_config import data_config_of
from stitchkit.networks.layout import Layout
from stitchkit.networks.mode import without_statistics
from stitchkit.networks.slices import extract
from stitchkit.routes import Joint, Step, Stitch, StitchSpace


class SNNet(RouteStatistics):
    """A stitchable network. It runs one stitch at a time and shares all weights among them.

    Parameters are named as in the released checkpoints: `anchors.<n>.<timm's name>` and
    `stitch_layers.<pair>.<layer>.transform.<weight or bias>`, with the stage before the pair if there are several.

    Args:
        anchors, space, stitched_final_norm, layer, updates, levels: As in `Backbone`.
        image: Preparation of images in timm's terms; what it leaves open is as for the last anchor.
        head: Makes the end of all routes: the heads of anchors, or a `LevelHead` with the parameters `head.<name>`.
        keeps_statistics: As in `RouteStatistics`.

    Raises:
        InputError: If the anchors cannot be stitched: input sizes or classes differ, or a joint cannot be converted.

    Source: SN-Net, section 3.
    """

    pretrained_cfg: dict[str, Any]
    """The preparation of images and the number of classes, 0 for none, for `timm.data.resolve_model_data_config`."""
    anchors: nn.ModuleList
    updates: nn.ModuleList
    stitch_layers: nn.ModuleDict
    level_layers: LevelLayers

    def __init__(
        self,
        anchors: Sequence[Anchor],
        space: StitchSpace,
        *,
        stitched_final_norm: bool = True,
        layer: Callable[[Layout, Layout], StitchLayer] = StitchLayer,
        image: Mapping[str, Any] | None = None,
        updates: int = 0,
        levels: Sequence[int] | None = None,
        head: Callable[[Backbone], RouteHead] = RouteHead,
        keeps_statistics: bool = False,
    ):
        super().__init__(keeps_statistics=keeps_statistics)
        self.backbone = Backbone(
            anchors, space, stitched_final_norm=stitched_final_norm, layer=layer, updates=updates, levels=levels
        )
        self.views, self.space = self.backbone.views, space
        self.route_head = head(self.backbone)
        # In this order: optimizers count parameters by it.
        for name, module in {**self.backbone.modules, **self.route_head.modules}.items():
            self.add_module(name, module)
        self.grad_checkpointing, self._default_id = False, 0
        self._passes: dict[tuple[object, ...], OnePass] = {}
        prepared = data_config_of(image or {}, self.input_size, anchors[-1].pretrained_cfg)
        self.pretrained_cfg = {**prepared, "num_classes": self.num_classes}

    def layer(self, joint: Joint) -> StitchLayer:
        """The stitching layer of a joint."""
        return self.backbone.layer(joint)

    @property
    def num_classes(self) -> int:
        """Number of logits, or of a dense head's outputs at a pixel; 0 if the output is the end anchor's feature."""
        return self.route_head.outputs

    @property
    def in_chans(self) -> int:
        """Channels of an input image."""
        return self.input_size[0]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of an input image, `(C, H, W)`."""
        return next(iter(self.views.values())).input_size

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations of blocks in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def reset_stitch_id(self, cfg_id: int) -> None:
        """Choose the stitch that `forward` runs by default."""
        _ = self.space[cfg_id]
        self._default_id = cfg_id

    def resolve(self, stitch: Stitch | int | None = None) -> Stitch:
        """The stitch for a stitch, a `cfg_id`, or None for the default one."""
        if stitch is None:
            return self.space[self._default_id]
        if isinstance(stitch, Stitch):
            if stitch not in self.space:
                raise InputError(f"{stitch} is not in this space of {len(self.space)} stitches; see model.space")
            return stitch
        return self.space[operator.index(stitch)]

    def steps(self, stitch: Stitch | int | None = None) -> list[Step]:
        """The steps of a stitch, with the final normalisation if this model applies it, and its head."""
        return self.route_head.steps(self.resolve(stitch))

    def module_of(self, step: Step) -> nn.Module:
        """The module that runs a step; it shares the model's weights."""
        return self.route_head.module_of(step)

    def route(self, stitch: Stitch | int | None = None) -> nn.Sequential:
        """The network of one stitch with the model's own weights, for measurements; `extract` gives it its own."""
        stitch = self.resolve(stitch)
        return self.route_head.network(stitch, {name: self.module_of(step) for name, step in named(self.steps(stitch))})

    def forward(self, x: torch.Tensor, stitch: Stitch | int | None = None, *, with_feature: bool = False) -> Any:
        """The output of one stitch for images `[B, C, H, W]`: logits `[B, num_classes]`.

        Without classes, it is the pooled feature `[B, C]` of the stitch's end anchor, and its width. Of a dense head it
        is `[B, num_classes, h, w]`, logits or depths in metres, to be resized bilinearly to the images; in training, a
        list of that and of the outputs of auxiliary heads.

        Args:
            stitch: The stitch or its `cfg_id`; without one, that of `reset_stitch_id`.
            with_feature: Return what enters the head, too: the output of the last block, such as `[B, N, C]` or
                `[B, C, H, W]`, or the levels of a dense head.

        Raises:
            InputError: If the stitch is not in the space.
        """
        with self.with_statistics(stitch):
            output, feature = self.route_head.run(self._run, x, self.resolve(stitch), training=self.training)
        return (output, feature) if with_feature else output

    def _run(self, step: Step, x: torch.Tensor) -> Any:
        module = self.module_of(step)
        if self.grad_checkpointing and self.training and step.kind == "block":
            # The backward pass runs the block again, and batch norms must not count the batch twice.
            return checkpoint(
                module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), without_statistics(module))
            )
        return module(x)

    def features(
        self, x: torch.Tensor, stitch: Stitch | int | None = None, *, levels: Sequence[int] | None = None
    ) -> list[torch.Tensor]:
        """The features of one stitch at several depths, as maps `[B, C, H, W]`, for images `[B, C, H, W]`.

        At each level, all stitches have the width of the last anchor: where one runs another anchor, a stitching layer
        maps its features. No final normalisation is applied.

        Args:
            stitch: As in `forward`.
            levels: Take features after these blocks of the last anchor; by default those of the network, or,
                if it has none, the last one of each stage, or of each quarter of one stage.

        Raises:
            InputError: If the stitch is not in the space, or no layer maps a level to the width of the last anchor.

        Source: Stitched ViTs are Flexible Vision Backbones, section 3, and its released code.
        """
        with self.with_statistics(stitch):
            steps = self.backbone.level_steps(self.resolve(stitch), levels)
            return [level.map for level in levels_along(self._run, x, steps)]

    def forward_all(
        self, x: torch.Tensor, cfg_ids: Iterable[int] | None = None, *, memory: int | None = None
    ) -> dict[int, torch.Tensor]:
        """Outputs as of `forward` by `cfg_id` of many stitches for the same images; common work is done once.

        Args:
            cfg_ids: The stitches; by default all.
            memory: Bytes that activations may take, as in `OnePass`.

        Raises:
            InputError: As of `OnePass`; of a dense head, its `outputs` gives one output after the other.
        """
        chosen = self.space.ids if cfg_ids is None else tuple(cfg_ids)
        self.warn_of_shared_statistics(chosen, stacklevel=3)
        key = (chosen, memory, *filter(self.has_statistics, chosen))
        if key not in self._passes:  # kept, because each measures once how much memory an image takes
            self._passes[key] = OnePass(self, chosen, memory=memory)
        return self._passes[key](x)

    @overload
    def extract(self, stitch: Stitch | int | None = None, *, features: Literal[False] = False) -> ExtractedRoute: ...

    @overload
    def extract(self, stitch: Stitch | int | None = None, *, features: Literal[True]) -> RouteFeatures: ...

    def extract(self, stitch: Stitch | int | None = None, *, features: bool = False) -> ExtractedRoute | RouteFeatures:
        """The network of one stitch, with its own copy of only the weights that the route needs.

        Its output equals `forward(x, stitch)`, with the same batch-norm statistics, and its `pretrained_cfg` says how
        images are prepared; errors are those of `forward`. Without a dense head, it has timm's `forward_features`,
        `forward_head` and `reset_classifier`.

        Args:
            stitch: As in `forward`.
            features: In place of it, the part that the levels need: its output equals `features(x, stitch)`, and it has
                timm's `feature_info`.
        """
        net: ExtractedRoute | RouteFeatures
        with self.with_statistics(stitch, even_in_training=True):
            if features:
                modules = exported(self.module_of, self.backbone.level_steps(self.resolve(stitch)))
                net = extract(RouteFeatures(modules, self.backbone.level_infos))
            else:
                net = self.route_head.extracted(self.resolve(stitch))
        net.train(self.training)
        net.pretrained_cfg = dict(self.pretrained_cfg)
        return net
