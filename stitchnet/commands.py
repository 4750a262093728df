"""The commands that compose networks: `stitchkit compose`, and experiments with what it composes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stitchkit.parser import Command
from stitchkit.settings.schema import parse
from stitchnet.settings import ComposeSettings, add_flags, flag_of

if TYPE_CHECKING:
    from stitchnet.journal import Journal
    from stitchnet.task import CompositionTask

_EXPERIMENTS = ("samples", "front", "ensembles", "finetune")


def _add_compose_flags(command: argparse.ArgumentParser, **defaults: object) -> None:
    add_flags(command, **defaults)
    command.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write")


def _add_study_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("experiment", choices=_EXPERIMENTS, help="the experiment; writes DIR/EXPERIMENT.csv and .png")
    _add_compose_flags(command, top=10)


def _compose(flags: argparse.Namespace) -> None:
    from stitchnet.compose import LEDGER, compose

    with _begun("compose", flags, LEDGER) as (task, settings, journal):
        compose(task, settings, journal)


def _study(flags: argparse.Namespace) -> None:
    from stitchnet.experiments import study

    name = vars(flags).pop("experiment")
    with _begun(name, flags, f"{name}.csv", f"{name}.png") as (task, settings, journal):
        study(name, task, settings, journal)


@contextmanager
def _begun(
    name: str, flags: argparse.Namespace, *results: str
) -> Iterator[tuple[CompositionTask, ComposeSettings, Journal]]:
    """The task of a command, its settings, and the journal in its folder, from which it resumes."""
    import torch

    from stitchkit.distributed import choose_device
    from stitchnet.journal import resumable
    from stitchnet.task import CompositionTask

    given = vars(flags)
    folder = Path(given.pop("output"))
    given["device"] = str(choose_device(given.get("device")))
    # A resumed command may name the same place by another path.
    if Path(flags.data).is_dir():
        given["data"] = str(Path(flags.data).resolve())
    if given.get("nets", "").endswith(".json"):
        given["nets"] = str(Path(flags.nets).resolve())
    settings = parse(ComposeSettings, given, name=flag_of)
    with resumable(folder, name, settings.by_flag(), results) as journal:
        torch.manual_seed(settings.seed)  # for random weights
        yield CompositionTask.load(settings.data, settings.img_size, settings.classifier), settings, journal


compose = Command(_compose, "compose networks from fragments of pretrained ones, without training", _add_compose_flags)
compose_study = Command(
    _study,
    "experiments of the StitchNet paper: stitching images, accuracy over MACs, ensembles, fine-tuning",
    _add_study_flags,
)
