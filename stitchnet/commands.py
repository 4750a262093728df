"""The command that composes networks: `stitchkit compose`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stitchkit.errors import InputError
from stitchkit.parser import Commands


def add_commands(commands: Commands) -> None:
    """Add it to the parser."""
    compose = commands.add("compose", _compose, "compose networks from fragments of others, without training")
    compose.add_argument("--data", required=True, metavar="DIR", help="image folder with train/ and validation/")
    compose.add_argument(
        "--nets",
        default="alexnet,densenet121,mobilenet_v3_small,resnet50,vgg16",
        metavar="NAMES",
        help="networks of torchvision or timm, NAME or NAME=CHECKPOINT, with commas between; or a stitch configuration",
    )
    pretrained = compose.add_mutually_exclusive_group()
    pretrained.add_argument("--pretrained", action="store_true", default=True, help="fetch their weights (the default)")
    pretrained.add_argument("--no-pretrained", dest="pretrained", action="store_false", help="random weights")
    compose.add_argument("--threshold", type=float, default=0.8, metavar="S", help="least score of a joint")
    compose.add_argument("--total-threshold", type=float, default=0.8, metavar="S", help="least product of all scores")
    compose.add_argument("--max-depth", type=int, default=10, metavar="N", help="fragments in a network, at most")
    compose.add_argument(
        "-k", dest="width", type=int, default=2, metavar="N", help="next fragments that are tried at each step"
    )
    compose.add_argument("--top", type=int, default=20, metavar="N", help="networks that are built, the best by score")
    compose.add_argument("--order", choices=("depth", "best"), default="best", help="which are found first")
    compose.add_argument(
        "--score", choices=("cka", "unbiased_cka", "r2", "fit"), default="cka", help="how fragments are compared"
    )
    compose.add_argument("--max-macs", type=float, metavar="N", help="leave out what needs more multiply-adds")
    compose.add_argument("--max-params", type=float, metavar="N", help="leave out what has more parameters")
    compose.add_argument("--num-images", type=int, default=32, metavar="N", help="stitching images, from train/")
    compose.add_argument("--img-size", type=int, default=224, metavar="N", help="side of the images")
    compose.add_argument("--classifier", choices=("knn", "linear"), default="knn", help="what is fitted to the outputs")
    compose.add_argument("--seed", type=int, default=0, metavar="N", help="which images are drawn")
    compose.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write")


def _compose(settings: dict[str, Any]) -> None:
    from stitchnet.compose import compose

    if Path(settings["output"]).exists():
        raise InputError(f"'{settings['output']}' exists; choose another folder or remove it")
    for name in ("num_images", "img_size", "top"):
        if settings[name] < 1:
            raise InputError(f"--{name.replace('_', '-')} is {settings[name]}; it must be at least 1")
    settings["data"], settings["output"] = Path(settings["data"]), Path(settings["output"])
    compose(**settings)
