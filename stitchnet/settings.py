"""The settings of a composition, each of which is a flag of the commands that compose networks."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Annotated, Literal, get_args, get_origin

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass
from stitchkit.settings.flag_fields import flag, flag_in

from stitchkit.display import count
from stitchkit.settings.schema import Settings

PUBLISHED = ("alexnet", "densenet121", "mobilenet_v3_small", "resnet50", "vgg16")
"""The networks of the paper, torchvision's."""

Limit = Annotated[float, BeforeValidator(count)]
"""A number with a unit, such as `3G`."""


@dataclass(frozen=True)
class ComposeSettings(Settings):
    """Settings of a composition; the help of a flag says what its setting means."""

    data: str = flag(..., "image folder with train/ and validation/, or a data set's name", metavar="DIR")
    nets: str = flag(
        ",".join(PUBLISHED),
        "networks of torchvision or timm, NAME or NAME=CHECKPOINT, separated by commas; or a stitch configuration",
        metavar="NAMES",
    )
    pretrained: bool = flag(True, "download their weights, instead of random ones")
    threshold: float = flag(
        0.8,
        "lowest score at which two fragments are joined: 0 for nothing in common, 1 for identical activations",
        metavar="S",
    )
    total_threshold: float = flag(0.8, "lowest product of the scores of a network's joints", metavar="S")
    max_depth: int = flag(10, "largest number of fragments in a network", ge=2, metavar="N")
    width: int = flag(
        2,
        "number of best-fitting fragments to try at each step; a larger number finds more and takes longer",
        "-k",
        ge=1,
        metavar="N",
    )
    top: int = flag(20, "number of networks to compose, the best by score", ge=1, metavar="N")
    order: Literal["depth", "best"] = flag(
        "best", "best: highest score first, and stop with --top; depth: search all, as published"
    )
    score: Literal["cka", "unbiased_cka", "r2", "fit"] = flag("cka", "how fragments are compared")
    max_macs: Limit | None = flag(
        None, "leave out networks with more multiply-adds, such as 3G (no limit)", metavar="N"
    )
    max_params: Limit | None = flag(
        None, "leave out networks with more parameters, such as 30M (no limit)", metavar="N"
    )
    num_images: int = flag(32, "number of images from train/ for the comparison", ge=1, metavar="N")
    img_size: int = flag(224, "side of the images", ge=1, metavar="N")
    classifier: Literal["knn", "linear"] = flag(
        "knn", "classifier of the outputs: nearest neighbours or logistic regression"
    )
    seed: int = flag(0, "seed of the image draw and of random weights", metavar="N")
    device: str | None = flag(None, "cpu, cuda or cuda:N; by default cuda if available", metavar="DEVICE")

    def by_flag(self) -> dict[str, object]:
        """All settings under the names that they have for users."""
        return {flag_of(name): value for name, value in asdict(self).items()}


def flag_of(name: str) -> str:
    """The flag of a setting."""
    aliases = flag_in(ComposeSettings.__pydantic_fields__[name]).aliases
    return aliases[0] if aliases else f"--{name.replace('_', '-')}"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flag of each setting to a parser."""
    for name, field in ComposeSettings.__pydantic_fields__.items():
        options = {"dest": name, "help": field.description, **flag_in(field).options}
        if field.is_required():
            options["required"] = True
        elif field.annotation is bool:
            options |= {"action": argparse.BooleanOptionalAction, "default": field.default}
        elif field.default is not None:
            about = f"{field.description} (%(default)s)"
            options |= {"type": type(field.default), "default": field.default, "help": about}
        if get_origin(field.annotation) is Literal:
            options["choices"] = get_args(field.annotation)
        parser.add_argument(flag_of(name), **options)
