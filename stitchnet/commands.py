"""The commands that compose networks: `stitchkit compose`, and experiments with what it composes."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stitchkit.errors import InputError
from stitchkit.parser import REPEAT, Command, add_picture_format
from stitchkit.settings.schema import parse
from stitchnet.settings import ComposeSettings, TuningSettings, add_flags, flag_of

if TYPE_CHECKING:
    from stitchnet.journal import Journal
    from stitchnet.task import CompositionTask

_logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=ComposeSettings)

_EXPERIMENTS = ("samples", "front", "ensembles", "finetune")


def _add_compose_flags(command: argparse.ArgumentParser) -> None:
    add_flags(command, ComposeSettings)
    _add_output(command)


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--download", action="store_true", help="download a missing data set")
    command.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write")


def _add_study_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "experiment", choices=_EXPERIMENTS, help="the experiment; writes DIR/EXPERIMENT.csv and a picture"
    )
    add_picture_format(command)
    add_flags(command, TuningSettings, top=10)
    _add_output(command)


def _compose(flags: argparse.Namespace) -> None:
    from stitchnet.compose import LEDGER, SHEET, compose

    with _begun("compose", flags, ComposeSettings, LEDGER, SHEET) as (task, settings, journal):
        compose(task, settings, journal)


def _study(flags: argparse.Namespace) -> None:
    from stitchnet.experiments import study

    given = vars(flags)
    name, picture = given.pop("experiment"), f".{given.pop('format')}"
    if name != "finetune" and (own := sorted(given.keys() & {"head", "trains", "eval_every"})):
        raise InputError(f"{flag_of(own[0])} is for the experiment finetune, not {name}; leave it out")
    kind = TuningSettings if name == "finetune" else ComposeSettings
    with _begun(name, flags, kind, f"{name}.csv", name + picture) as (task, settings, journal):
        study(name, task, settings, journal, picture=picture)


@contextmanager
def _begun(
    name: str, flags: argparse.Namespace, kind: type[Kind], *results: str
) -> Iterator[tuple[CompositionTask, Kind, Journal]]:
    """The task of a command, its settings, and the journal in its folder, from which it resumes."""
    import torch

    from stitchkit.distributed import choose_device
    from stitchnet.compose import networks_of
    from stitchnet.journal import resumable
    from stitchnet.task import CompositionTask

    given = vars(flags)
    folder, download = Path(given.pop("output")), given.pop("download", False)
    given["device"] = str(choose_device(given.get("device")))
    # A resumed command may name the same place by another path.
    if Path(flags.data).is_dir():
        given["data"] = str(Path(flags.data).resolve())
    if given.get("nets", "").endswith(".json"):
        given["nets"] = str(Path(flags.nets).resolve())
    if "output_map" in given:
        given["output_map"] = str(Path(flags.output_map).resolve())
    settings = parse(kind, given, name=flag_of)
    with _plain_warnings(), resumable(folder, name, settings.by_flag(), results, growing="--top") as journal:
        torch.manual_seed(settings.seed)  # for random weights
        networks_of(settings)  # a wrong name must not wait until all images are read
        task = CompositionTask.load(
            settings.data, settings.img_size, settings.classifier, settings.output_map, download=download
        )
        yield task, settings, journal


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Log Python's warnings as a line, without a place in our code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _logger.warning("%s", message)
        yield


compose = Command(
    _compose, "compose networks from fragments of pretrained ones, without training", _add_compose_flags,
    resumes=REPEAT,
)  # fmt: skip
compose_study = Command(
    _study,
    "experiments of the StitchNet paper: stitching images, accuracy over MACs, ensembles, fine-tuning",
    _add_study_flags,
    resumes=REPEAT,
)
