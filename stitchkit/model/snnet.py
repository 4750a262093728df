"""SN-Net: several anchors, the stitching layers between them, and every route through both."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import compress, count
from typing import Any, Literal, overload

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from stitchkit.errors import InputError
from stitchkit.model.heads.head import DenseHead
from stitchkit.model.layer import StitchLayer, layouts_at
from stitchkit.model.levels import Level, LevelInfo, LevelLayers, LevelTap, infos_of
from stitchkit.model.onepass import OnePass
from stitchkit.model.route_network import RouteFeatures, RouteNetwork
from stitchkit.model.statistics import RouteStatistics
from stitchkit.model.transforms import AdaptedBlock, AnchorUpdates, anchor_updates
from stitchkit.networks.anchor import Anchor, HeadSlice
from stitchkit.networks.data_config import data_config_of
from stitchkit.networks.layout import Layout
from stitchkit.networks.mode import without_statistics
from stitchkit.networks.slices import extract
from stitchkit.routes import Joint, Step, Stitch, StitchSpace
from stitchkit.routes.levels import Levels


class SNNet(RouteStatistics):
    """A stitchable network. It runs one stitch at a time and shares all weights among them.

    Parameters are named as in the released checkpoints: `anchors.<n>.<timm's name>` and
    `stitch_layers.<pair>.<layer>.transform.<weight or bias>`, with the stage before the pair if there are several.

    Args:
        anchors: From cheap to costly.
        space: The stitches, with the layer of each joint.
        stitched_final_norm: Whether stitched routes apply the end anchor's final normalisation; uncut anchors
            always do. The released DeiT code does not.
        layer: Makes the stitching layer between two layouts.
        image: Preparation of images in timm's terms; what it leaves open is as for the last anchor.
        levels: Dense heads take features after these blocks of the last anchor, counted over all stages, as in
            `Levels.of`; None for a network without further layers for them. Their parameters are
            `level_layers.<n>.<block>.transform.<weight or bias>`.
        updates: Rank of updates of the anchors' linear layers, which stitched routes have and uncut anchors do not;
            0 for none. Their parameters are `updates.<n>.<timm's path>.<lora_A or lora_B>`.
        keeps_statistics: As in `RouteStatistics`.

    Raises:
        InputError: If the anchors cannot be stitched: input sizes or classes differ, or a joint cannot be converted.

    Source: SN-Net, section 3.
    """

    pretrained_cfg: dict[str, Any]
    """The preparation of images and the number of classes, 0 for none, for `timm.data.resolve_model_data_config`."""

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
        keeps_statistics: bool = False,
    ):
        super().__init__(keeps_statistics=keeps_statistics)
        # A plain dictionary, so that the anchors' modules are registered only once, under the published names.
        self.views = {anchor.label: anchor for anchor in anchors}
        self.space = space
        self.stitched_final_norm = stitched_final_norm
        self.grad_checkpointing = False
        self._default_id, self._frozen = 0, False
        self._passes: dict[tuple[object, ...], OnePass] = {}
        _check_inputs(anchors)
        prepared = data_config_of(image or {}, self.input_size, anchors[-1].pretrained_cfg)
        self.pretrained_cfg = {**prepared, "num_classes": self.num_classes}
        self.anchors = nn.ModuleList(anchor.model for anchor in anchors)
        self.updates = anchor_updates(anchors, updates)
        self.stitch_layers = nn.ModuleDict()
        for joint, path in space.layers.items():
            self._add_layer(joint, path, layer)
        self._levels = None if levels is None else Levels.of(anchors, levels)
        self.level_layers = LevelLayers(self._levels, self.views, space.layers, layer)

    def _add_layer(self, joint: Joint, path: tuple[int, ...], make: Callable[[Layout, Layout], StitchLayer]) -> None:
        table = self.stitch_layers
        for number in path[:-1]:
            inner = table[str(number)] if str(number) in table else nn.ModuleDict()
            assert isinstance(inner, nn.ModuleDict)
            table[str(number)] = table = inner
        layouts = layouts_at(joint, self.views[joint.front], self.views[joint.end])
        if str(path[-1]) not in table:
            table[str(path[-1])] = make(*layouts)
        elif layouts != (shared := self.layer(joint).layouts):
            raise InputError(
                f"{joint} joins {layouts[0]} to {layouts[1]}, but shares its stitching layer with joints of "
                f'{shared[0]} to {shared[1]}; set "rule": "proportional", where every joint has its own layer'
            )

    def layer(self, joint: Joint) -> StitchLayer:
        """The stitching layer of a joint."""
        module = self.stitch_layers.get_submodule(".".join(map(str, self.space.layers[joint])))
        assert isinstance(module, StitchLayer)
        return module

    @property
    def num_classes(self) -> int:
        """Number of logits; 0 if the anchors have no classifier, and the output is the end anchor's pooled feature."""
        return next(iter(self.views.values())).num_classes

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

    def freeze_anchors(self, *, class_tokens: bool = True) -> None:
        """Train only what is not the anchors'; their batch norms keep their statistics.

        Args:
            class_tokens: Train the class tokens too, which changes what uncut anchors compute.

        Source: the released configuration `"fulltune": false`, which trains the class tokens.
        """
        self._frozen = True
        self.train(self.training)
        for anchor in self.views.values():
            anchor.model.requires_grad_(False)
            for name in anchor.class_tokens if class_tokens else ():
                if (token := getattr(anchor.model, name, None)) is not None:
                    token.requires_grad_(True)

    def train(self, mode: bool = True) -> SNNet:
        """Set the mode of all but the batch norms of frozen anchors; training drops the statistics of single routes."""
        super().train(mode)
        if mode:
            self.drop_statistics()
        # Drifting statistics would change the anchors, although none of their parameters is trained.
        if self._frozen:
            for part in self.anchors.modules():
                if isinstance(part, _BatchNorm):
                    part.eval()
        return self

    def trainable_stitches(self) -> list[int]:
        """The `cfg_id`s of the routes with trainable parameters."""
        trainable = (
            any(weight.requires_grad for weight in self.route(cfg_id).parameters()) for cfg_id in self.space.ids
        )
        return [*compress(self.space.ids, trainable)]

    def reset_stitch_id(self, cfg_id: int) -> None:
        """Choose the stitch that `forward` runs by default.

        Raises:
            InputError: If there is no such `cfg_id`.
        """
        _ = self.space[cfg_id]
        self._default_id = cfg_id

    def resolve(self, stitch: Stitch | int | None = None) -> Stitch:
        """The stitch for a stitch, a `cfg_id`, or None for the default one.

        Raises:
            InputError: If it is not in the space.
        """
        if stitch is None:
            return self.space[self._default_id]
        if isinstance(stitch, Stitch):
            if stitch not in self.space:
                raise InputError(f"{stitch} is not in this space of {len(self.space)} stitches; see model.space")
            return stitch
        return self.space[operator.index(stitch)]

    def steps(self, stitch: Stitch | int | None = None) -> list[Step]:
        """The steps of a stitch, with the final normalisation if this model applies it."""
        settings = {"stitched_final_norm": self.stitched_final_norm, "adapted": bool(self.updates)}
        return list(self.resolve(stitch).steps(**settings))

    def module_of(self, step: Step) -> nn.Module:
        """The module that runs a step; it shares the model's weights."""
        if step.kind == "level":
            return self._tap(step)
        if step.joint is not None:
            return self.layer(step.joint)
        anchor = self.views[step.anchor]
        if step.kind == "bare head":
            return anchor.bare_head
        module = anchor.module(0 if step.kind == "stem" else step.index + 1)
        if step.kind != "block" or not step.adapted:
            return module
        updates = self.updates[[*self.views].index(step.anchor)]
        assert isinstance(updates, AnchorUpdates)
        return updates.applied_to(module, step.index)

    def route(self, stitch: Stitch | int | None = None) -> nn.Sequential:
        """The network of one stitch with the model's own weights, for measurements; `extract` gives it its own."""
        return nn.Sequential(*map(self.module_of, self.steps(stitch)))

    def forward(
        self, x: torch.Tensor, stitch: Stitch | int | None = None, *, with_feature: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits `[B, num_classes]` of one stitch for images `[B, C, H, W]`.

        Without classes, it is the pooled feature `[B, C]` of the stitch's end anchor, and its width.

        Args:
            stitch: The stitch or its `cfg_id`; without one, that of `reset_stitch_id`.
            with_feature: Return the output of the last block too, such as `[B, N, C]` or `[B, C, H, W]`; the head
                makes the final feature from it.

        Raises:
            InputError: If the stitch is not in the space.
        """
        feature = x
        with self.with_statistics(stitch):
            for step in self.steps(stitch):
                feature, x = x, self._run(step, x)
        return (x, feature) if with_feature else x

    def _run(self, step: Step, x: torch.Tensor) -> torch.Tensor:
        module = self.module_of(step)
        if self.grad_checkpointing and self.training and step.kind == "block":
            # The backward pass runs the block again, and batch norms must not count the batch twice.
            output: torch.Tensor = checkpoint(
                module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), without_statistics(module))
            )
        else:
            output = module(x)
        return output

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
            return [level.map for level in self.run_levels(x, self.level_steps(stitch, levels))]

    def level_steps(self, stitch: Stitch | int | None = None, levels: Sequence[int] | None = None) -> list[Step]:
        """The steps of a stitch up to its last level; arguments and errors are those of `features`."""
        places = self._levels
        if places is None or levels is not None:
            places = Levels.of([*self.views.values()], levels)
        return [*places.steps(self.resolve(stitch), adapted=bool(self.updates))]

    def run_levels(self, x: torch.Tensor, steps: Iterable[Step]) -> list[Level]:
        """The levels of images `[B, C, H, W]`, from the first to the last."""
        modules = []
        for step in steps:
            if step.kind == "level":
                modules.append(self._tap(step)(x))
            else:
                x = self._run(step, x)
        return modules

    @property
    def level_infos(self) -> list[LevelInfo]:
        """What heads know of the levels of `features`."""
        views = [*self.views.values()]
        return infos_of(self._levels or Levels.of(views), views[-1])

    def _tap(self, step: Step) -> LevelTap:
        last, layer = [*self.views.values()][-1], None
        assert step.level is not None, "it is a level"
        if step.joint is not None:
            shared = step.joint in self.space.layers
            layer = self.layer(step.joint) if shared else self.level_layers.of(step.anchor, step.level)
            if layer is None:
                raise InputError(
                    f"no layer maps the features of '{step.anchor}' to those of '{last.label}' after block "
                    f"{step.level}; create the network with levels that include {step.level}"
                )
        return LevelTap(layer, last.boundaries[step.level + 1].layout, last.input_size[1:])

    def forward_all(
        self, x: torch.Tensor, cfg_ids: Iterable[int] | None = None, *, memory: int | None = None
    ) -> dict[int, torch.Tensor]:
        """Logits, or features, by `cfg_id` of many stitches for the same images; common work is done once.

        Args:
            cfg_ids: The stitches; by default all.
            memory: Bytes that activations may take, as in `OnePass`.

        Raises:
            InputError: If a stitch does not exist, the model is in training mode, or the memory is not enough for
                one image.
        """
        chosen = self.space.ids if cfg_ids is None else tuple(cfg_ids)
        self.warn_of_shared_statistics(chosen, stacklevel=3)
        key = (chosen, memory, *filter(self.has_statistics, chosen))
        if key not in self._passes:  # kept, because each measures once how much memory an image takes
            self._passes[key] = OnePass(self, chosen, memory=memory)
        return self._passes[key](x)

    @overload
    def extract(self, stitch: Stitch | int | None = None, *, features: Literal[False] = False) -> RouteNetwork: ...

    @overload
    def extract(self, stitch: Stitch | int | None = None, *, features: Literal[True]) -> RouteFeatures: ...

    def extract(self, stitch: Stitch | int | None = None, *, features: bool = False) -> RouteNetwork | RouteFeatures:
        """The network of one stitch, with its own copy of only the weights that the route needs.

        Its output equals `forward(x, stitch)`, with the same batch-norm statistics, and its `pretrained_cfg` says how
        images are prepared; errors are those of `forward`. It has timm's `forward_features`, `forward_head` and
        `reset_classifier`.

        Args:
            stitch: As in `forward`.
            features: In place of it, the part that the levels need: its output equals `features(x, stitch)`, and it has
                timm's `feature_info`.
        """
        net: RouteNetwork | RouteFeatures
        with self.with_statistics(stitch, even_in_training=True):
            if features:
                steps = self.level_steps(stitch)
                net = extract(RouteFeatures(modules_of(self, steps), self.level_infos))
            else:
                steps = self.steps(stitch)
                modules = modules_of(self, steps)
                last = modules["head"]
                head = last if isinstance(last, HeadSlice) else self.views[steps[-1].anchor].head
                net = extract(RouteNetwork.of(modules, head))
        net.train(self.training)
        net.pretrained_cfg = dict(self.pretrained_cfg)
        return net


def modules_of(model: SNNet, steps: Sequence[Step]) -> dict[str, nn.Module]:
    """The modules of an extracted network, by name."""
    done: dict[nn.Module, nn.Module] = {}
    return {name: folded(model.module_of(step), done) for name, step in named(steps)}


def folded(module: nn.Module, done: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """The module of a step as it is exported; one that is `done` already for another step stays one."""
    if isinstance(module, LevelTap):
        layer = module.layer and folded(module.layer, done)
        return module.with_layer(layer) if isinstance(layer, StitchLayer) else module
    done = {} if done is None else done
    if isinstance(module, StitchLayer | AdaptedBlock | DenseHead) and module not in done:
        done[module] = module.folded()
    return done.get(module, module)


def named(steps: Iterable[Step]) -> Iterator[tuple[str, Step]]:
    """Steps with their names in an extracted network: `stem`, `block0`, ..., `stitch0`, ..., `level0`, ..., `head`."""
    kinds = {"block": "block{}", "layer": "stitch{}", "level": "level{}"}
    numbered = {kind: map(name.format, count()) for kind, name in kinds.items()}
    for step in steps:
        yield next(numbered[step.kind]) if step.kind in numbered else step.kind.removeprefix("bare "), step


def _check_inputs(anchors: Sequence[Anchor]) -> None:
    flags = {
        "input_size": "--img-size (img_size)",
        "num_classes": "--num-classes (num_classes); num_classes=0 is for networks that give features",
    }
    for kind, flag in flags.items():
        values = {anchor.label: getattr(anchor, kind) for anchor in anchors}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{label} {value}" for label, value in values.items())
            advice = f"choose anchors that agree, or give all one by {flag}"
            raise InputError(f"anchors differ in {kind}: {listed}; {advice}")
