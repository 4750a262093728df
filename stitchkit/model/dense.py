"""An SN-Net for dense prediction: a class or a depth for every pixel, by every route, through one head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.model.coverage import check_coverage
from stitchkit.model.heads.head import DenseHead
from stitchkit.model.levels import Level, LevelInfo
from stitchkit.model.route_network import DenseRoute, RouteFeatures
from stitchkit.model.snnet import SNNet, modules_of, named
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.slices import extract
from stitchkit.routes import Step, Stitch, StitchSpace
from stitchkit.routes.levels import default_blocks


class DenseSNNet(SNNet):
    """An SN-Net all of whose routes give their levels to one head, which is trained with them.

    Its parameters are those of `SNNet`, and `head.<name>`.

    Args:
        anchors: As in `SNNet`; their own heads are not used.
        space: The stitches.
        levels: As in `Levels.of`; by default its default.
        head: Makes the head, given what the levels are and the number of outputs.
        num_outputs: Outputs at a pixel: the number of classes, or 1 for depth.
        options: Further arguments of `SNNet`.

    Source: Stitched ViTs are Flexible Vision Backbones, section 4.2, and its released code.
    """

    def __init__(
        self,
        anchors: Sequence[Anchor],
        space: StitchSpace,
        *,
        head: Callable[[Sequence[LevelInfo], int], DenseHead],
        num_outputs: int,
        levels: Sequence[int] | None = None,
        **options: Any,
    ):
        for anchor in anchors:
            check_coverage(anchor)
        self._num_outputs = num_outputs  # `SNNet` asks for it
        levels = default_blocks(anchors[-1].depths) if levels is None else levels
        super().__init__(anchors, space, levels=levels, **options)
        self.head = head(self.backbone.level_infos, num_outputs)

    @property
    def num_classes(self) -> int:
        """Outputs at a pixel: the number of classes, or 1 for depth."""
        return self._num_outputs

    @property
    def shares_head(self) -> bool:
        """Whether uncut anchors share a head with all routes: they do."""
        return True

    def steps(self, stitch: Stitch | int | None = None) -> list[Step]:
        """The steps of a stitch up to the last level that the head needs, and the head."""
        label, last = [*self.views.items()][-1]
        needed = {self.backbone.level_infos[number].block for number in self.head.needed}
        steps = [step for step in self.level_steps(stitch) if step.level is None or step.level in needed]
        while steps[-1].kind != "level":
            steps.pop()
        return [*steps, Step("head", label, sum(last.depths))]

    def module_of(self, step: Step) -> nn.Module:
        """The module that runs a step; it shares the model's weights."""
        return self.head if step.kind == "head" else super().module_of(step)

    def route(self, stitch: Stitch | int | None = None) -> DenseRoute:
        """As in `SNNet`: its head takes the levels of the steps before it."""
        return DenseRoute({name: self.module_of(step) for name, step in named(self.steps(stitch))})

    def forward(  # type: ignore[override] # there is no final feature
        self, x: torch.Tensor, stitch: Stitch | int | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Outputs `[B, num_classes, h, w]` of one stitch for images `[B, C, H, W]`: logits, or depths in metres.

        They have the resolution of the head; resize them bilinearly to the images. In training mode it is a list of
        them and those of auxiliary heads.
        """
        if not self.training:
            *steps, _ = self.steps(stitch)
            with self.with_statistics(stitch):
                output: torch.Tensor = self.head(self.run_levels(x, steps))
            return output
        levels = self.run_levels(x, self.level_steps(stitch))
        return [self.head([levels[number] for number in self.head.needed]), *self.head.auxiliary(levels)]

    def forward_all(
        self, x: torch.Tensor, cfg_ids: Iterable[int] | None = None, *, memory: int | None = None
    ) -> dict[int, torch.Tensor]:
        """Outputs by `cfg_id` of many stitches for the same images; common work is done once.

        Args:
            cfg_ids: The stitches; by default all.
            memory: Not for dense prediction, whose outputs would not fit; `DensePass` gives one after the other.

        Raises:
            InputError: If a stitch does not exist, the model is in training mode, or a memory is given.
        """
        if memory is not None:
            raise InputError(
                f"memory is {memory}, but an SN-Net for dense prediction returns a map of each image for every stitch, "
                "which no limit makes smaller; remove the limit, or give fewer images or cfg_ids"
            )
        chosen = self.space.ids if cfg_ids is None else tuple(cfg_ids)
        self.warn_of_shared_statistics(chosen, stacklevel=3)
        return dict(sorted(DensePass(self, chosen)([x])))

    @overload  # type: ignore[override] # another kind of network
    def extract(self, stitch: Stitch | int | None = None, *, features: Literal[False] = False) -> DenseRoute: ...

    @overload
    def extract(self, stitch: Stitch | int | None = None, *, features: Literal[True]) -> RouteFeatures: ...

    def extract(self, stitch: Stitch | int | None = None, *, features: bool = False) -> DenseRoute | RouteFeatures:
        """The network of one stitch, with its own copy of only the weights that the route needs; as in `SNNet`."""
        if features:
            return super().extract(stitch, features=True)
        with self.with_statistics(stitch, even_in_training=True):
            net = extract(DenseRoute(modules_of(self, self.steps(stitch)))).train(self.training)
        net.pretrained_cfg = dict(self.pretrained_cfg)
        return net


@dataclass
class _Junction:
    """A step that some routes run on the same input, the levels of its output, the routes that end, the next steps."""

    step: Step
    taps: list[Step] = field(default_factory=list)
    ends: list[tuple[int, list[Step]]] = field(default_factory=list)
    then: dict[Step, _Junction] = field(default_factory=dict)


class DensePass:
    """Runs many stitches of a dense SN-Net on the same images, each common part once.

    Routes come one after the other, as a tree is walked: at the size of dense prediction one image already saturates
    the device, so batching routes gains nothing, and all outputs together would not fit the memory. Each step runs on
    one portion of the images after the other, because it takes far more memory than its input and output. Routes with
    batch-norm statistics of their own share no work.

    Args:
        model: An SN-Net in evaluation mode.
        cfg_ids: The stitches; by default all.
    """

    def __init__(self, model: DenseSNNet, cfg_ids: Iterable[int] | None = None):
        self._model = model
        self._roots: dict[Step, _Junction] = {}
        chosen = [*(model.space.ids if cfg_ids is None else cfg_ids)]
        self._alone = [*filter(model.has_statistics, chosen)]
        for cfg_id in chosen:
            if cfg_id not in self._alone:
                *steps, _ = model.steps(cfg_id)
                self._add(cfg_id, steps)
        if not chosen:
            raise InputError("there is no stitch to run; give at least one cfg_id")

    def _add(self, cfg_id: int, steps: Sequence[Step]) -> None:
        # Where a level is taken depends on the whole route, so that it does not part routes.
        junctions, node = self._roots, None
        for step in steps:
            if step.kind != "level":
                node = junctions.setdefault(step, _Junction(step))
                junctions = node.then
            elif node is not None and step not in node.taps:
                node.taps.append(step)
        assert node is not None, "a route has steps"
        node.ends.append((cfg_id, [step for step in steps if step.kind == "level"]))

    def __call__(self, portions: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        """The `cfg_id` and the outputs `[B, num_classes, h, w]` of every stitch for all images, in any order.

        Args:
            portions: Images `[b, C, H, W]` that run at a time.
        """
        if self._model.training:
            raise InputError("all stitches run in one pass only in evaluation mode; call model.eval() first")
        for cfg_id in self._alone:
            yield cfg_id, torch.cat([self._model(x, cfg_id) for x in portions])
        for root in self._roots.values():
            yield from self._walk(root, portions, {})

    def _walk(
        self, node: _Junction, xs: Sequence[torch.Tensor], levels: Mapping[Step, Sequence[Level]]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        while True:
            module = self._model.module_of(node.step)
            xs = [module(x) for x in xs]
            for tap in node.taps:
                module = self._model.module_of(tap)
                levels = {**levels, tap: [module(x) for x in xs]}
            for cfg_id, taps in node.ends:
                portions_of_levels = zip(*(levels[tap] for tap in taps), strict=True)
                yield cfg_id, torch.cat([self._model.head(each) for each in portions_of_levels])
            if len(node.then) != 1:
                break
            (node,) = node.then.values()  # in a loop, so that only tensors where routes part are kept
        for child in node.then.values():
            yield from self._walk(child, xs, levels)
