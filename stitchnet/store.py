"""Composed networks on disk: weights as safetensors, everything else as JSON; nothing in the files is executed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save as serialized
from torch import nn

from stitchkit.files import replacing, write_text
from stitchkit.networks.layout import Layout
from stitchkit.networks.steps import Boundary
from stitchkit.settings.stitch_config import AnchorSpec
from stitchnet.classifier import Classifier
from stitchnet.fragments import Fragment
from stitchnet.joint import joint_of

WEIGHTS, ABOUT = "net.safetensors", "net.json"


class _Composed(Protocol):
    """The part of a composed network to write."""

    name: str
    score: float
    scores: tuple[float, ...]
    input_size: tuple[int, int, int]
    specs: dict[str, AnchorSpec | None]
    path: tuple[Fragment, ...]
    layers: nn.ModuleList

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Its weights by name."""


def save(net: _Composed, folder: Path, *, fitted: Classifier | None) -> Path:
    """Write a network, and its classifier if it has one, into a folder, which is created if necessary and returned."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"net.{name}": value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    tensors = {name: value.clone() for name, value in tensors.items()}  # safetensors rejects shared tensors
    about = {
        "name": net.name,
        "score": net.score,
        "scores": net.scores,
        "input_size": net.input_size,
        "networks": {label: asdict(spec) if spec else None for label, spec in net.specs.items()},
        "path": [_about(fragment, layer) for fragment, layer in zip(net.path, net.layers, strict=True)],
    }
    if fitted:
        about["classifier"] = fitted.kind
        tensors["classifier.outputs"] = torch.as_tensor(fitted.outputs).contiguous()
        tensors["classifier.labels"] = torch.as_tensor(fitted.labels).contiguous()
    with replacing(folder / WEIGHTS) as draft:
        draft.write_bytes(serialized(tensors))  # an error of the library's own writer hides that of the system
    write_text(folder / ABOUT, json.dumps(about, indent=1))
    return folder


def _about(fragment: Fragment, layer: nn.Module) -> dict[str, object]:
    assert isinstance(layer, nn.Sequential)
    joint, described = joint_of(layer), None
    if joint is not None:
        widths = [reader.weight.shape[1] for _, reader in fragment.readers(layer[-1])]
        described = {
            "source": _about_layout(joint.source),
            "target": _about_layout(joint.target),
            "size": joint.size,
            "maps": [tuple(weight.shape) for weight in joint.maps],
            "reader_widths": widths,
        }
    ends = {"start": _about_boundary(fragment.start), "stop": _about_boundary(fragment.stop)}
    return {"network": fragment.network, "index": fragment.index, "count": fragment.count, **ends, "joint": described}


def _about_boundary(boundary: Boundary | None) -> dict[str, object] | None:
    if boundary is None:
        return None
    form = _about_layout(boundary.layout)
    return {"before": boundary.before[0], "after": boundary.after[0], "readers": boundary.takers, "form": form}


def _about_layout(layout: Layout) -> dict[str, object]:
    """A layout in a file, in which vectors have none."""
    return {
        "layout": None if layout.is_vector else layout.kind, "num_prefix_tokens": layout.num_prefix_tokens
    }  # fmt: skip
