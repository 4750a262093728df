"""The description of an exported stitch: enough to rebuild its network, and to prepare images for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stitchkit.errors import InputError, one_line
from stitchkit.model.layer import StitchLayer
from stitchkit.model.snnet import SNNet
from stitchkit.model.transforms import transform_of
from stitchkit.networks.create import create_anchor
from stitchkit.networks.data_config import check_data_config, given_data_config
from stitchkit.networks.hub_weights import is_architecture
from stitchkit.networks.mode import evaluating
from stitchkit.routes import Stitch, StitchSpace
from stitchkit.settings.stitch_config import AnchorSpec
from stitchkit.ship.formats import About

FORMAT = "stitchkit stitch 1"
"""The format that every description names."""
FEATURE = "feature"
"""The name of the output of a network without classes; that of others is `logits`."""


def portable(spec: AnchorSpec, model: SNNet, *, global_pool: str | None = None) -> dict[str, object]:
    """An anchor's specification as built into an SN-Net, independent of weight files and downloads."""
    channels, height, width = model.input_size
    kwargs = {
        **spec.kwargs,
        "num_classes": model.num_classes,
        "img_size": height if height == width else [height, width],
    }
    if channels != 3:
        kwargs["in_chans"] = channels
    if global_pool:
        kwargs["global_pool"] = global_pool
    name = (
        spec.name
        if is_architecture(spec.name)
        else model.views[spec.label].pretrained_cfg.get("architecture", spec.name)
    )
    return {"name": name, "label": spec.label, "kwargs": kwargs}


def output_of(model: SNNet, stitch: Stitch | int) -> dict[str, object]:
    """The name and the width of a stitch's output: `logits` of classes, or the pooled `feature` of its end anchor."""
    if model.num_classes:
        return {"name": "logits", "width": model.num_classes}
    blank = next(iter(model.views.values())).blank_image()
    with evaluating(model), torch.no_grad():
        return {"name": FEATURE, "width": model(blank, stitch).shape[1]}


def output_name(about: About) -> str:
    """The name of the output that a description gives; older ones, which give none, are of logits."""
    output = about.get("output")
    return FEATURE if isinstance(output, Mapping) and output.get("name") == FEATURE else "logits"


def no_classes(what: str) -> InputError:
    """The error for a network that is to predict, but gives features."""
    return InputError(
        f"{what} gives features, not classes; give a network that was trained for classes, as stitchkit train does "
        "(--num-classes N if the data do not name them)"
    )


def build(about: Mapping[str, Any]) -> nn.Sequential:
    """The described network with random weights; nothing is downloaded, and no other anchor is built."""
    if about.get("format") != FORMAT:
        raise InputError(f"its format is {about.get('format')!r}, not '{FORMAT}'; export it again")
    try:
        stitch = Stitch.parse(about["stitch"])
        specs = [local(AnchorSpec.parse(entry)) for entry in about["anchors"]]
        final_norm, eps, image = bool(about["stitched_final_norm"]), about["bn_eps"], given_data_config(about["input"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"its description is damaged ({one_line(error)}); export it again") from error
    if (kind := about.get("layer", "linear")) not in ("linear", "mlp"):
        raise InputError(f"its stitching layers are {kind!r}, not 'linear' or 'mlp'; export it again")
    anchors = [create_anchor(spec, pretrained=False) for spec in specs]
    space = StitchSpace({0: stitch}, {joint: (number,) for number, joint in enumerate(stitch.joints)}, 0)
    depths = {anchor.label: sum(anchor.depths) for anchor in anchors}
    if any(segment.stop > depths.get(segment.anchor, 0) for segment in stitch.segments):
        raise InputError(f"its route {stitch} does not fit its anchors of {depths} blocks; export it again")
    # A space of only this stitch, from which the network is extracted like any other, with the same parameter names.
    check_data_config(image, anchors[-1].input_size[0])
    layer = partial(StitchLayer, transform=transform_of(kind, 0))
    net = SNNet(anchors, space, stitched_final_norm=final_norm, layer=layer, image=image).extract(0)
    for norm in net.modules():
        if isinstance(norm, _BatchNorm) and eps is not None:
            norm.eps = eps
    return net


def local(spec: AnchorSpec) -> AnchorSpec:
    """A specification from a file, if it names only an architecture."""
    if spec.checkpoint is not None or not is_architecture(spec.name):
        place = spec.checkpoint or spec.name
        raise InputError(f"anchor '{spec.label}' of the file would be read from '{place}'; refused")
    return spec
