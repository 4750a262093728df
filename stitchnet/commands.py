"""The commands that compose networks: `stitchkit compose`, and experiments with what it composes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stitchkit.errors import InputError
from stitchkit.parser import Commands

if TYPE_CHECKING:
    from stitchnet.compose import Plan
    from stitchnet.task import Task

_EXPERIMENTS = ("samples", "front", "ensembles", "finetune")


def add_commands(commands: Commands) -> None:
    """Add them to the parser."""
    compose = commands.add("compose", _compose, "compose networks from fragments of others, without training")
    _add_flags(compose, top=20)
    about = "experiments of the StitchNet paper: stitching images, accuracy over MACs, ensembles, fine-tuning"
    study = commands.add("compose-study", _study, about)
    study.add_argument("experiment", choices=_EXPERIMENTS, help="which; it writes DIR/EXPERIMENT.csv and .png")
    _add_flags(study, top=10)


def _add_flags(command: argparse.ArgumentParser, *, top: int) -> None:
    add = command.add_argument
    add("--data", required=True, metavar="DIR", help="image folder with train/ and validation/")
    add(
        "--nets",
        default="alexnet,densenet121,mobilenet_v3_small,resnet50,vgg16",
        metavar="NAMES",
        help="networks of torchvision or timm, NAME or NAME=CHECKPOINT, with commas between; or a stitch configuration",
    )
    pretrained = command.add_mutually_exclusive_group()
    pretrained.add_argument("--pretrained", action="store_true", default=True, help="fetch their weights (the default)")
    pretrained.add_argument("--no-pretrained", dest="pretrained", action="store_false", help="random weights")
    add("--threshold", type=float, default=0.8, metavar="S", help="least score of a joint")
    add("--total-threshold", type=float, default=0.8, metavar="S", help="least product of all scores")
    add("--max-depth", type=int, default=10, metavar="N", help="fragments in a network, at most")
    add("-k", dest="width", type=int, default=2, metavar="N", help="next fragments that are tried at each step")
    add("--top", type=int, default=top, metavar="N", help=f"networks that are composed, the best by score ({top})")
    add("--order", choices=("depth", "best"), default="best", help="which are found first")
    scores = ("cka", "unbiased_cka", "r2", "fit")
    add("--score", choices=scores, default="cka", help="how fragments are compared")
    add("--max-macs", metavar="N", help="leave out what needs more multiply-adds, such as 3G")
    add("--max-params", metavar="N", help="leave out what has more parameters, such as 30M")
    add("--num-images", type=int, default=32, metavar="N", help="stitching images, from train/")
    add("--img-size", type=int, default=224, metavar="N", help="side of the images")
    add("--classifier", choices=("knn", "linear"), default="knn", help="what is fitted to the outputs")
    add("--seed", type=int, default=0, metavar="N", help="which images are drawn")
    add("-o", "--output", required=True, metavar="DIR", help="folder to write")


def _compose(settings: dict[str, Any]) -> None:
    from stitchnet.compose import compose

    output = Path(settings.pop("output"))
    if output.exists():
        raise InputError(f"'{output}' exists; choose another folder or remove it")
    compose(*_read(settings), output)


def _study(settings: dict[str, Any]) -> None:
    from stitchnet.experiments import study

    name, output = settings.pop("experiment"), Path(settings.pop("output"))
    for path in (output / f"{name}.csv", output / f"{name}.png"):
        if path.exists():
            raise InputError(f"'{path}' exists; choose another folder or remove it")
    study(name, *_read(settings), output)


def _read(settings: dict[str, Any]) -> tuple[Task, Plan]:
    """What networks are judged on, and what is composed."""
    from stitchkit.ship.pick import count
    from stitchnet.compose import Plan
    from stitchnet.task import Task

    for name in ("max_macs", "max_params"):
        if settings[name] is not None:
            settings[name] = count(settings[name])
    for name in ("num_images", "img_size", "top"):
        if settings[name] < 1:
            raise InputError(f"--{name.replace('_', '-')} is {settings[name]}; it must be at least 1")
    task = Task.load(Path(settings.pop("data")), settings.pop("img_size"), settings.pop("classifier"))
    named = {name: settings.pop(name) for name in ("nets", "pretrained", "top", "num_images", "score", "seed")}
    return task, Plan(**named, options=settings)
