"""Models of a library to be cut, and the list of their nodes for people."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from torch import nn

from stitchkit.display import aligned
from stitchkit.errors import unknown
from stitchkit.networks.create import create_model
from stitchkit.networks.steps import Node

BACKENDS = {"timm": "timm", "torchvision": "torchvision", "pytorch": "torchvision"}
"""The library of each backend name."""


def library_of(backend: str) -> str:
    """The library of a backend.

    Raises:
        InputError: If there is no such backend.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    return BACKENDS[backend]


def check_torchvision_name(name: str) -> None:
    """Check that torchvision has a classifier of a name; its models for other tasks are refused.

    Raises:
        InputError: If it has none.
    """
    names = torchvision.models.list_models(torchvision.models)
    if name not in names:
        raise unknown("torchvision model", name, names)


def library_model(name: str, backend: str = "timm") -> tuple[nn.Module, torch.Tensor]:
    """A model of a library without weights, on the meta device, and an image that it takes.

    Raises:
        InputError: If there is no such backend, or the library has no such model.
    """
    if library_of(backend) == "timm":
        with torch.device("meta"):
            timm_model = create_model(name)
        return timm_model.eval(), torch.empty(1, *timm_model.pretrained_cfg["input_size"], device="meta")
    check_torchvision_name(name)
    model = torchvision.models.get_model(name, weights=None).to("meta")  # some cannot be built there
    return model.eval(), torch.empty(1, 3, 224, 224, device="meta")


def table(listed: Sequence[Node]) -> str:
    """Nodes as lines, for people; a star marks clean places."""
    cells = [
        (f"{'*' if node.is_clean else ' '} {node.name}", node.kind, "x".join(map(str, node.shape or "-")))
        for node in listed
    ]
    return aligned(cells, left={0, 1, 2})
