"""SN-Nets from their configurations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stitchkit.errors import InputError
from stitchkit.model.anchor_sources import AnchorSource, anchor_source, make_anchor
from stitchkit.model.coverage import check_coverage, warn_of_borders
from stitchkit.model.heads.heads import HEADS
from stitchkit.model.heads.route_head import LevelHead
from stitchkit.model.layer import StitchLayer, transform_of
from stitchkit.model.plan import plan_anchors
from stitchkit.model.snnet import SNNet
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.create import create_anchor
from stitchkit.networks.data_config import given_data_config, unlike_images
from stitchkit.networks.meta import without_values
from stitchkit.networks.trained_with import all_noted
from stitchkit.routes import StitchSpace
from stitchkit.routes.levels import default_blocks
from stitchkit.settings.dense_recipe import DenseSpec
from stitchkit.settings.schema import parse
from stitchkit.settings.stitch_config import StitchConfig

_logger = logging.getLogger(__name__)


def create_snnet(
    config: StitchConfig | Mapping[str, object] | str | Path | None = None,
    *,
    anchors: Sequence[str | Path | Mapping[str, object] | AnchorSource] = (),
    dense: DenseSpec | Mapping[str, object] | None = None,
    levels: Sequence[int] | None = None,
    pretrained: bool = False,
    checkpoints: bool = True,
    **overrides: Any,
) -> SNNet:
    """The SN-Net of a configuration, or of some anchors.

    Stitching layers are random; `fit_stitching_layers` or a checkpoint sets them.

    Args:
        config: A configuration, its content, the path of its file, or its short name, such as `deit_ti_s_b`.
        anchors: In place of it, timm names, checkpoints as `--anchors` takes them, specifications, or networks of your
            own, in any order. Where they are joined follows from their structure, and is logged.
        pretrained: Download timm's weights of anchors without a local `checkpoint`.
        checkpoints: Load these local files. False is for a network whose weights do not matter, or all come from
            another file.
        dense: Task, head and levels of a network for dense prediction, as the configuration's `dense`, in place of it.
        levels: Take `features` after these blocks of the last anchor, so that all stitches have layers for
            them; a dense network has its own.
        overrides: Arguments of `timm.create_model` for all anchors, such as `num_classes=10` or `img_size=384`. With
            `num_classes=0` the anchors have no classifier, and a stitch gives the pooled feature of its end. Of a
            network for segmentation, `num_classes` is the number of outputs of the head; by default that of the
            configuration's recipe.

    Raises:
        InputError: If the configuration or an anchor is invalid, or the anchors cannot be stitched.
    """
    model = build_snnet(
        config, anchors=anchors, dense=dense, levels=levels, pretrained=pretrained, checkpoints=checkpoints, **overrides
    )
    for trained in all_noted(model):
        trained.say_unlike(model.pretrained_cfg)
    return model


def build_snnet(
    config: StitchConfig | Mapping[str, object] | str | Path | None = None,
    *,
    anchors: Sequence[str | Path | Mapping[str, object] | AnchorSource] = (),
    dense: DenseSpec | Mapping[str, object] | None = None,
    levels: Sequence[int] | None = None,
    **options: Any,
) -> SNNet:
    """`create_snnet` for a caller that decides itself how images are prepared."""
    if (config is None) != bool(anchors):
        raise InputError("give either a configuration or anchors, such as anchors=['resnet18', 'resnet50']")
    if isinstance(anchors, str):
        names = [name.strip() for name in anchors.split(",")]
        raise InputError(f"anchors is the text '{anchors}', not a list; write anchors={names}")
    spec = dense if isinstance(dense, DenseSpec | None) else parse(DenseSpec, dense, "dense")
    options = {"pretrained": False, "checkpoints": True, **options}
    pretrained, checkpoints = options["pretrained"], options["checkpoints"]
    if anchors:
        planned = {key: value for key, value in options.items() if key not in ("pretrained", "checkpoints")}
        planned |= {} if spec is None else {"num_classes": 0}
        plan = plan_anchors([anchor_source(source) for source in anchors], **planned)
        for line in plan.lines:
            _logger.info("%s", line)

        def of_plan(**options: Any) -> tuple[list[Anchor], StitchSpace]:
            built = [make_anchor(source, label, **options) for label, source in plan.sources.items()]
            return built, StitchSpace.build(built, plan.rule)

        model = _assemble(of_plan, spec, {"levels": levels}, **options)
        if words := unlike_images(model.views):
            _logger.warning("%s", words)
        warn_of_borders(model.views.values())
        return model
    assert config is not None
    config = read_config(config)
    spec, of_network = spec or config.dense, {**snnet_options(config), "image": given_data_config(config.recipe)}
    if spec is not None and options.get("num_classes") is None:
        options["num_classes"] = config.recipe.get("num_classes")
    parts, of_network = partial(anchors_and_space, config), {**of_network, "levels": levels}
    if pretrained or (checkpoints and any(anchor.checkpoint for anchor in config.anchors)):
        with without_values():  # find anchors that cannot be stitched before downloading weights
            _assemble(parts, spec, of_network, **{**options, "pretrained": False, "checkpoints": False})
    model = _assemble(parts, spec, of_network, **options)
    warn_of_borders(model.views.values())
    return model


def read_config(config: StitchConfig | Mapping[str, object] | str | Path) -> StitchConfig:
    """A configuration from itself, its content, or the path of its file."""
    if isinstance(config, StitchConfig):
        return config
    return StitchConfig.load(config) if isinstance(config, str | Path) else StitchConfig.parse(config)


def anchors_and_space(config: StitchConfig, **options: Any) -> tuple[list[Anchor], StitchSpace]:
    """The anchors and the stitch space of an SN-Net; options as in `create_anchor`."""
    anchors = [create_anchor(spec, **options) for spec in config.anchors]
    return anchors, config.space_of(anchors)


def _assemble(
    parts: Callable[..., tuple[list[Anchor], StitchSpace]],
    dense: DenseSpec | None,
    of_network: Mapping[str, Any],
    **options: Any,
) -> SNNet:
    """The network of anchors and a space, which `parts` makes with the options of `create_anchor`."""
    if dense is None:
        return SNNet(*parts(**options), **of_network)
    classes = options.pop("num_classes", None)
    outputs = dense.facts.outputs or classes
    if not outputs:
        raise InputError(f"{dense.task} needs the number of classes; give num_classes")
    if of_network["levels"] is not None:
        raise InputError("levels are given twice, for the network and for its head; give those of 'dense'")
    anchors, space = parts(**options, num_classes=0)
    return SNNet(anchors, space, **{**of_network, **dense_options(dense, outputs, anchors)})


def dense_options(dense: DenseSpec, num_outputs: int, anchors: Sequence[Anchor]) -> dict[str, Any]:
    """Arguments of `SNNet` for dense prediction with so many outputs at a pixel; refuses anchors that miss pixels."""
    assert dense.head is not None, "each task has a default"
    for anchor in anchors:
        check_coverage(anchor)
    make = partial(HEADS[dense.head], num_outputs=num_outputs, min_depth=dense.facts.least)
    levels = default_blocks(anchors[-1].depths) if dense.levels is None else dense.levels
    return {"head": partial(LevelHead, make=make), "levels": levels}


def snnet_options(config: StitchConfig) -> dict[str, Any]:
    """Arguments of `SNNet` that a configuration gives beside its anchors and space."""
    assert config.layer is not None
    return {
        "stitched_final_norm": config.stitched_final_norm,
        "layer": partial(StitchLayer, transform=transform_of(config.layer, config.lora_r or 0)),
        "updates": config.anchor_lora_r,
        "keeps_statistics": config.recipe.get("recalibrate_bn") == 0,
    }
