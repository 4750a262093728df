"""The settings of a composition; each is a flag of the commands that compose networks."""

from __future__ import annotations

import argparse
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from stitchkit.display import count
from stitchkit.parser import DATA_FLAGS
from stitchkit.settings import schema
from stitchkit.settings.fields import Batch, Count, Seed, Share, Side, Times, flag
from stitchkit.settings.flags import add_settings
from stitchkit.settings.schema import Settings

PUBLISHED = ("alexnet", "densenet121", "mobilenet_v3_small", "resnet50", "vgg16")
"""The networks of the paper, torchvision's."""

Limit = Annotated[
    float, Field(ge=0, le=1e18), BeforeValidator(lambda value: count(value) if isinstance(value, str) else value)
]
"""A number, or a text with a unit such as `3G`."""

# What argparse cannot learn from the fields.
_VALUES: dict[str, dict[str, Any]] = {
    "data": {"metavar": "DIR", "required": True},
    "nets": {"metavar": "NAMES"},
    "output_map": {"metavar": "FILE"},
    **{name: {"type": str, "metavar": "N"} for name in ("max_macs", "max_params")},
}
_SPELLINGS = {"data": DATA_FLAGS, "max_macs": ("--max-flops", "--max-macs")}


@dataclass(frozen=True)
class ComposeSettings(Settings):
    """Settings of a composition; the help of a flag says what its setting means."""

    data: str = flag(..., "image folder with train/ and validation/, or a data set's name")
    nets: str = flag(
        ",".join(PUBLISHED),
        "networks of torchvision or timm, NAME or NAME=CHECKPOINT, separated by commas; or a stitch configuration",
    )
    pretrained: bool = flag(True, "download their weights, instead of random ones")
    threshold: Share = flag(
        0.8, "lowest score at which two fragments are joined, from 0 to 1 (1: identical activations)"
    )
    total_threshold: Share = flag(0.8, "lowest product of the scores of a network's joints")
    max_depth: Annotated[Times, Field(ge=2)] = flag(10, "largest number of fragments in a network")
    width: Count = flag(2, "number of best-fitting fragments to try at each step")
    top: Count = flag(20, "number of networks to compose, the best by score")
    order: Literal["depth", "best"] = flag("best", "best: highest score first, up to --top; depth: all, as published")
    score: Literal["cka", "r2"] = flag("cka", "how fragments are compared")
    max_macs: Limit | None = flag(None, "skip networks with more multiply-adds, such as 3G", strict=None)
    max_params: Limit | None = flag(None, "skip networks with more parameters, such as 30M", strict=None)
    num_images: Batch = flag(32, "number of images from train/ for the comparison")
    img_size: Side = flag(224, "side of the images")
    classifier: Literal["knn", "max", "sum", "argmax"] = flag(
        "knn",
        "classifier of the outputs: nearest neighbours; or, with --output-map, the class of the highest output, the "
        "highest summed probability, or the highest of all outputs, which may belong to none",
    )
    output_map: str | None = flag(
        None, "JSON or YAML file with each class's outputs: numbers, ImageNet names or synsets"
    )
    seed: Seed = flag(0, "seed of the image draw and of random weights")
    device: str | None = flag(None, "cpu, cuda or cuda:N; by default cuda if available")


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return {"width": "-k", "max_macs": "--max-flops"}.get(name) or schema.flag_of(name)


def add_flags(parser: argparse.ArgumentParser, kind: type[ComposeSettings], **defaults: object) -> None:
    """Add the flag of each setting to a parser; its result has only flags that the user set, and `defaults`."""
    parser.argument_default = argparse.SUPPRESS
    options = _VALUES | {name: {"default": default} for name, default in defaults.items()}
    add_settings(parser, kind, lambda name: _SPELLINGS.get(name) or [flag_of(name)], options)
