"""Composed networks from the folders of `Net.save`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from stitchkit.errors import InputError, one_line
from stitchkit.files import check_regular
from stitchkit.networks.classifier import classifier_of
from stitchkit.settings.files import unique_keys
from stitchkit.settings.schema import image_size, parse
from stitchkit.settings.stitch_config import AnchorSpec
from stitchnet.classifier import Classifier, OutputMap
from stitchnet.joint import rebuild
from stitchnet.net import ABOUT, WEIGHTS, Net
from stitchnet.networks import create


def load(folder: str | Path, nets: Mapping[str, nn.Module] | None = None) -> Net:
    """Read a network from a folder of `Net.save`; nothing in the files is executed.

    Args:
        nets: The search's networks by label, if it got modules instead of names. Their weights do not matter.

    Raises:
        InputError: If the files cannot be read, or a module is missing.
    """
    folder = Path(folder)
    try:
        for name in (ABOUT, WEIGHTS):
            check_regular(folder / name)
        about = json.loads((folder / ABOUT).read_text(), object_pairs_hook=unique_keys)
        return _restore(about, load_file(folder / WEIGHTS), nets or {})
    except InputError:
        raise
    except Exception as error:  # on a damaged file, the reader may raise anything
        raise InputError(
            f"'{folder}' contains no readable composed network: {one_line(error)}; check the path"
        ) from error


def _restore(about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], nets: Mapping[str, nn.Module]) -> Net:
    specs = {label: spec and AnchorSpec.parse(spec) for label, spec in about["networks"].items()}
    # The file has the weights, so only the structure of the networks is needed.
    models = {label: _model(label, spec, nets) for label, spec in specs.items()}
    path, layers = zip(*(rebuild(entry, models[entry["network"]]) for entry in about["path"]), strict=True)
    size = image_size(about["input_size"])
    net = Net(about["name"], about["score"], path, layers, about["scores"], size, specs)
    num_classes = about.get("num_classes")  # believed only if the weights have it: the number may be any
    if num_classes is not None and num_classes == len(tensors[f"net.{head_of(net)[0]}.weight"]):
        replace_head(net, num_classes)
    net.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("net.")})
    if "classifier" in about:
        outputs, labels = (tensors[f"classifier.{name}"].numpy() for name in ("outputs", "labels"))
        net.classifier = Classifier(about["classifier"], outputs, labels)
    if "output_map" in about:
        net.classifier = parse(OutputMap, about["output_map"], "output_map")
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


def head_of(net: Net) -> tuple[str, nn.Linear]:
    """The last linear layer of a network, and its name."""
    name = classifier_of(net)
    layer = net.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise InputError(f"'{net}' has no linear layer, so it has no head to train; use other networks")
    return name, layer


def replace_head(net: Net, num_classes: int, *, seed: int = 0) -> None:
    """Replace the head by a random one for a number of classes.

    All outputs must be those of the head; otherwise the network stays as it is.
    """
    name, old = head_of(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = nn.Linear(old.in_features, num_classes, old.bias is not None)
    net.set_submodule(name, new.to(old.weight.device, old.weight.dtype))
    try:
        fits = net.num_outputs == num_classes
    except RuntimeError:  # two heads of different sizes
        fits = False
    if not fits:
        net.set_submodule(name, old)
        raise InputError(f"'{net}' does not end in one linear layer, so it gets no new head; use other networks")
    net.classifier, net.num_classes = None, num_classes
