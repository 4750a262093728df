"""The backbone of a stitchable network: its anchors, the stitching layers between them, and the steps of its routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from stitchkit.errors import InputError
from stitchkit.model.layer import AnchorUpdates, StitchLayer, anchor_updates, layouts_at
from stitchkit.model.levels import LevelInfo, LevelLayers, LevelTap, grid_of
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.layout import Layout
from stitchkit.routes import Joint, Step, Stitch, StitchSpace
from stitchkit.routes.levels import Levels


class Backbone:
    """Anchors, the layers between them, and the steps of all routes through both.

    It is no module: the network that has it registers its `modules`, so that parameters have the names of released
    checkpoints.

    Args:
        anchors: From cheap to costly.
        space: The stitches, with the layer of each joint.
        stitched_final_norm: Whether stitched routes apply the end anchor's final normalisation; uncut anchors
            always do. The released DeiT code does not.
        layer: Makes the stitching layer between two layouts.
        updates: Rank of updates of the anchors' linear layers, which stitched routes have and uncut anchors do not;
            0 for none. Their parameters are `updates.<n>.<timm's path>.<lora_A or lora_B>`.
        levels: Dense heads take features after these blocks of the last anchor, counted over all stages, as in
            `Levels.of`; None for a network without further layers for them. Their parameters are
            `level_layers.<n>.<block>.transform.<weight or bias>`.

    Raises:
        InputError: If the anchors cannot be stitched: input sizes or classes differ, or a joint cannot be converted.
    """

    def __init__(
        self,
        anchors: Sequence[Anchor],
        space: StitchSpace,
        *,
        stitched_final_norm: bool = True,
        layer: Callable[[Layout, Layout], StitchLayer] = StitchLayer,
        updates: int = 0,
        levels: Sequence[int] | None = None,
    ):
        _check_inputs(anchors)
        self.views = {anchor.label: anchor for anchor in anchors}
        self.space = space
        self.stitched_final_norm = stitched_final_norm
        self._updates = anchor_updates(anchors, updates)
        self._layers = nn.ModuleDict()
        for joint, path in space.layers.items():
            self._add_layer(joint, path, layer)
        self._levels = None if levels is None else Levels.of(anchors, levels)
        self._level_layers = LevelLayers(self._levels, self.views, space.layers, layer)
        self.modules: dict[str, nn.Module] = {
            "anchors": nn.ModuleList(anchor.model for anchor in anchors),
            "updates": self._updates,
            "stitch_layers": self._layers,
            "level_layers": self._level_layers,
        }

    def _add_layer(self, joint: Joint, path: tuple[int, ...], make: Callable[[Layout, Layout], StitchLayer]) -> None:
        table = self._layers
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
        module = self._layers.get_submodule(".".join(map(str, self.space.layers[joint])))
        assert isinstance(module, StitchLayer)
        return module

    @property
    def last(self) -> Anchor:
        """The costliest anchor, whose width all levels have."""
        return [*self.views.values()][-1]

    def steps(self, stitch: Stitch) -> list[Step]:
        """The steps of a stitch, with the head of its end anchor, and the final normalisation if routes apply it."""
        return list(stitch.steps(stitched_final_norm=self.stitched_final_norm, adapted=bool(self._updates)))

    def level_steps(self, stitch: Stitch, levels: Sequence[int] | None = None) -> list[Step]:
        """The steps of a stitch up to its last level; by default the levels of `level_infos`."""
        places = self._levels
        if places is None or levels is not None:
            places = Levels.of([*self.views.values()], levels)
        return [*places.steps(stitch, adapted=bool(self._updates))]

    @property
    def level_infos(self) -> list[LevelInfo]:
        """What heads know of the levels: those of the network or, if it has none, the default ones."""
        infos = []
        for block in (self._levels or Levels.of([*self.views.values()])).chosen:
            layout, sides = self.last.boundaries[block + 1].layout, self.last.input_size[1:]
            reduction = -(-sides[0] // grid_of(layout, sides)[0])  # maps are rounded up
            infos.append(LevelInfo(layout.width, reduction, layout.num_prefix_tokens, block))
        return infos

    def module_of(self, step: Step) -> nn.Module:
        """The module that runs a step."""
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
        updates = self._updates[[*self.views].index(step.anchor)]
        assert isinstance(updates, AnchorUpdates)
        return updates.applied_to(module, step.index)

    def _tap(self, step: Step) -> LevelTap:
        layer = None
        assert step.level is not None, "it is a level"
        if step.joint is not None:
            shared = step.joint in self.space.layers
            layer = self.layer(step.joint) if shared else self._level_layers.of(step.anchor, step.level)
            if layer is None:
                raise InputError(
                    f"no layer maps the features of '{step.anchor}' to those of '{self.last.label}' after block "
                    f"{step.level}; create the network with levels that include {step.level}"
                )
        return LevelTap(layer, self.last.boundaries[step.level + 1].layout, self.last.input_size[1:])


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
