"""The commands that compose networks: `stitchkit compose`, and experiments with what it composes."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stitchkit.errors import InputError
from stitchkit.parser import Command, add_device_flag

if TYPE_CHECKING:
    from stitchnet.compose import ComposeSettings
    from stitchnet.journal import Journal
    from stitchnet.task import CompositionTask

_EXPERIMENTS = ("samples", "front", "ensembles", "finetune")
_LEAST = {
    "num_images": ("--num-images", 1),
    "img_size": ("--img-size", 1),
    "top": ("--top", 1),
    "width": ("-k", 1),
    "max_depth": ("--max-depth", 2),
}


def _add_compose_flags(command: argparse.ArgumentParser) -> None:
    _add_flags(command, top=20)


def _add_study_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("experiment", choices=_EXPERIMENTS, help="the experiment; writes DIR/EXPERIMENT.csv and .png")
    _add_flags(command, top=10)


def _add_flags(command: argparse.ArgumentParser, *, top: int) -> None:
    add = command.add_argument
    add("--data", required=True, metavar="DIR", help="image folder with train/ and validation/, or a data set's name")
    add(
        "--nets",
        default="alexnet,densenet121,mobilenet_v3_small,resnet50,vgg16",
        metavar="NAMES",
        help="networks of torchvision or timm, NAME or NAME=CHECKPOINT, separated by commas; or a stitch configuration "
        "(%(default)s)",
    )
    pretrained = command.add_mutually_exclusive_group()
    pretrained.add_argument(
        "--pretrained", action="store_true", default=True, help="download their weights (the default)"
    )
    pretrained.add_argument("--no-pretrained", dest="pretrained", action="store_false", help="random weights")
    least = "lowest score at which two fragments are joined: 0 for nothing in common, 1 for identical activations"
    add("--threshold", type=float, default=0.8, metavar="S", help=f"{least} (%(default)s)")
    whole = "lowest product of the scores of a network's joints"
    add("--total-threshold", type=float, default=0.8, metavar="S", help=f"{whole} (%(default)s)")
    add("--max-depth", type=int, default=10, metavar="N", help="largest number of fragments in a network (%(default)s)")
    wide = "number of best-fitting fragments to try at each step; a larger number finds more and takes longer"
    add("-k", dest="width", type=int, default=2, metavar="N", help=f"{wide} (%(default)s)")
    add(
        "--top",
        type=int,
        default=top,
        metavar="N",
        help="number of networks to compose, the best by score (%(default)s)",
    )
    order = "best: highest score first, and stop with --top; depth: search all, as published (%(default)s)"
    add("--order", choices=("depth", "best"), default="best", help=order)
    scores = ("cka", "unbiased_cka", "r2", "fit")
    add("--score", choices=scores, default="cka", help="how fragments are compared (%(default)s)")
    add("--max-macs", metavar="N", help="leave out networks with more multiply-adds, such as 3G (no limit)")
    add("--max-params", metavar="N", help="leave out networks with more parameters, such as 30M (no limit)")
    add(
        "--num-images",
        type=int,
        default=32,
        metavar="N",
        help="number of images from train/ for the comparison (%(default)s)",
    )
    add("--img-size", type=int, default=224, metavar="N", help="side of the images (%(default)s)")
    fitted = "classifier of the outputs: nearest neighbours or logistic regression (%(default)s)"
    add("--classifier", choices=("knn", "linear"), default="knn", help=fitted)
    add("--seed", type=int, default=0, metavar="N", help="seed of the image draw and of random weights (%(default)s)")
    add_device_flag(command)
    add("-o", "--output", required=True, metavar="DIR", help="folder to write")


def _compose(flags: argparse.Namespace) -> None:
    from stitchnet.compose import LEDGER, compose

    settings = vars(flags)
    with _resumable("compose", settings, LEDGER) as journal:
        compose(*_read(settings), journal)


def _study(flags: argparse.Namespace) -> None:
    from stitchnet.experiments import study

    settings = vars(flags)
    name = settings.pop("experiment")
    with _resumable(name, settings, f"{name}.csv", f"{name}.png") as journal:
        study(name, *_read(settings), journal)


def _resumable(name: str, settings: dict[str, Any], *results: str) -> AbstractContextManager[Journal]:
    """The journal of a command, after its settings are completed and checked."""
    from stitchkit.display import count
    from stitchkit.distributed import choose_device
    from stitchnet.journal import resumable

    for limit in ("max_macs", "max_params"):
        if settings[limit] is not None:
            settings[limit] = count(settings[limit])
    for number, (flag, least) in _LEAST.items():
        if settings[number] < least:
            raise InputError(f"{flag} is {settings[number]}; it must be at least {least}")
    settings["device"] = choose_device(settings["device"])
    folder, data = Path(settings.pop("output")), Path(settings["data"])
    plain = {"device": str(settings["device"])} | ({"data": str(data.resolve())} if data.is_dir() else {})
    if settings["nets"].endswith(".json"):
        plain["nets"] = str(Path(settings["nets"]).resolve())
    named = {
        "-k" if key == "width" else f"--{key.replace('_', '-')}": value for key, value in (settings | plain).items()
    }
    return resumable(folder, name, named, results)


def _read(settings: dict[str, Any]) -> tuple[CompositionTask, ComposeSettings]:
    """The task for the evaluation of networks, and the settings of the composition."""
    import torch

    from stitchnet.compose import ComposeSettings
    from stitchnet.task import CompositionTask

    torch.manual_seed(settings["seed"])  # for random weights
    task = CompositionTask.load(settings.pop("data"), settings.pop("img_size"), settings.pop("classifier"))
    named = ("nets", "pretrained", "top", "num_images", "score", "seed", "device")
    return task, ComposeSettings(**{name: settings.pop(name) for name in named}, options=settings)


compose = Command(_compose, "compose networks from fragments of pretrained ones, without training", _add_compose_flags)
compose_study = Command(
    _study,
    "experiments of the StitchNet paper: stitching images, accuracy over MACs, ensembles, fine-tuning",
    _add_study_flags,
)
