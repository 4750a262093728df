"""Reading composed networks from disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors.torch import load_file
from torch import nn

from stitchkit.errors import InputError, one_line, unknown
from stitchkit.networks.layout import Kind, Layout
from stitchkit.networks.steps import Boundary, extract
from stitchkit.settings.stitch_config import AnchorSpec
from stitchnet.classifier import Classifier
from stitchnet.fragments import Fragment, fragment_between
from stitchnet.joint import JointLayer, resize_input
from stitchnet.net import Net
from stitchnet.networks import create
from stitchnet.store import ABOUT, WEIGHTS


def load(folder: str | Path, nets: Mapping[str, nn.Module] | None = None) -> Net:
    """Read a network from a folder of `Net.save`.

    Args:
        nets: The search's networks by label, if it got modules instead of names. Their weights do not matter.

    Raises:
        InputError: If the files cannot be read, or a module is missing.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / ABOUT).read_text())
        tensors = load_file(folder / WEIGHTS)
        return _restore(about, tensors, nets or {})
    except Exception as error:  # on a damaged file, the reader may raise anything
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"'{folder}' contains no readable composed network: {one_line(error)}; check the path"
        ) from error


def _restore(about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], nets: Mapping[str, nn.Module]) -> Net:
    specs = {label: spec and AnchorSpec.parse(spec) for label, spec in about["networks"].items()}
    # The file has the weights, so only the structure of the networks is needed.
    models = {label: _model(label, spec, nets) for label, spec in specs.items()}
    path, layers = [], []
    for entry in about["path"]:
        fragment, layer = _layer(entry, models[entry["network"]])
        path.append(fragment)
        layers.append(layer)
    channels, height, width = about["input_size"]
    net = Net(about["name"], about["score"], path, layers, about["scores"], (channels, height, width), specs)
    net.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("net.")})
    if "classifier" in about:
        outputs, labels = (tensors[f"classifier.{name}"].numpy() for name in ("outputs", "labels"))
        net.classifier = Classifier(about["classifier"], outputs, labels)
    return net.eval()


def _model(label: str, spec: AnchorSpec | None, nets: Mapping[str, nn.Module]) -> nn.Module:
    if label in nets:
        return nets[label]
    if spec is None:
        raise InputError(f"network '{label}' was a module of the search; pass it as nets={{'{label}': module}}")
    if ":" in spec.name or "/" in spec.name:
        raise InputError(
            f"network '{label}' is from '{spec.name}', but files must not cause downloads; "
            f"create it yourself and pass it as nets={{'{label}': module}}"
        )
    return create(AnchorSpec(spec.name, spec.label, spec.kwargs))


def _layer(entry: Mapping[str, Any], model: nn.Module) -> tuple[Fragment, nn.Sequential]:
    """A fragment and its layers, of the right shapes."""
    start, stop = _boundary(entry["start"]), _boundary(entry["stop"])
    fragment = fragment_between(model, start, stop, entry["network"], entry["index"], entry["count"])
    fragment = replace(fragment, module=extract(fragment.module))  # two fragments of one network must not share weights
    joint = entry["joint"]
    if joint is None:
        return fragment, nn.Sequential(fragment.module)
    for (_, reader), width in zip(fragment.readers(fragment.module), joint["reader_widths"], strict=True):
        resize_input(reader, width)
    size = joint["size"] and (joint["size"][0], joint["size"][1])
    maps = [torch.empty(shape) for shape in joint["maps"]]
    layer = JointLayer(_layout_of(joint["source"]), _layout_of(joint["target"]), size, maps)
    return fragment, nn.Sequential(layer, fragment.module)


def _layout_of(value: Mapping[str, Any]) -> Layout:
    kind = value["layout"] or "vector"
    if kind not in get_args(Kind):
        raise unknown("layout", str(kind), get_args(Kind))
    return Layout(cast(Kind, kind), num_prefix_tokens=value["num_prefix_tokens"])


def _boundary(value: Mapping[str, Any] | None) -> Boundary | None:
    if value is None:
        return None
    return Boundary((value["before"],), (value["after"],), tuple(value["readers"]), _layout_of(value["form"]))
