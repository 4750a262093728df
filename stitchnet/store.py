"""A fragment with the joint before it as plain data, as composed networks have it in their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stitchkit.networks.layout import Layout
from stitchkit.networks.slices import Boundary, extract
from stitchkit.settings.schema import parse
from stitchnet.fragments import Fragment, fragment_between
from stitchnet.joint import JointLayer, joint_of, resize_input


def describe(fragment: Fragment, layer: nn.Module) -> dict[str, object]:
    """The data of a fragment and its layers, without their weights."""
    joint, about = joint_of(layer), None
    if joint is not None:
        _, module = layer.children()
        about = {
            "source": _describe_layout(joint.source),
            "target": _describe_layout(joint.target),
            "size": joint.size,
            "maps": [tuple(weight.shape) for weight in joint.maps],
            "reader_widths": [reader.weight.shape[1] for reader in fragment.readers(module)],
        }
    place = {"network": fragment.network, "index": fragment.index, "count": fragment.count}
    ends = {"start": _describe_boundary(fragment.start), "stop": _describe_boundary(fragment.stop)}
    return {**place, **ends, "joint": about}


def rebuild(about: Mapping[str, Any], model: nn.Module) -> tuple[Fragment, nn.Sequential]:
    """The fragment of some data, from its network, and its layers, of the right shapes but with any weights."""
    ends = _boundary(about["start"]), _boundary(about["stop"])
    fragment = fragment_between(model, *ends, about["network"], about["index"], about["count"])
    fragment = replace(fragment, module=extract(fragment.module))  # two fragments of one network must not share weights
    joint = about["joint"]
    if joint is None:
        return fragment, nn.Sequential(fragment.module)
    for reader, width in zip(fragment.readers(fragment.module), joint["reader_widths"], strict=True):
        resize_input(reader, width)
    size = joint["size"] and (joint["size"][0], joint["size"][1])
    maps = [torch.empty(shape) for shape in joint["maps"]]
    layer = JointLayer(_layout(joint["source"]), _layout(joint["target"]), size, maps)
    return fragment, nn.Sequential(layer, fragment.module)


def _describe_boundary(boundary: Boundary | None) -> dict[str, object] | None:
    if boundary is None:
        return None
    form = _describe_layout(boundary.layout)
    return {"before": boundary.before[0], "after": boundary.after[0], "readers": boundary.takers, "form": form}


def _boundary(about: Mapping[str, Any] | None) -> Boundary | None:
    if about is None:
        return None
    return Boundary((about["before"],), (about["after"],), tuple(about["readers"]), _layout(about["form"]))


def _describe_layout(layout: Layout) -> dict[str, object]:
    """A layout in a file, in which vectors have none."""
    kind = None if layout.is_vector else layout.kind
    return {"layout": kind, "num_prefix_tokens": layout.num_prefix_tokens}


def _layout(about: Mapping[str, Any]) -> Layout:
    prefix = about["num_prefix_tokens"]
    return parse(Layout, {"kind": about["layout"] or "vector", "num_prefix_tokens": prefix}, "layout")
