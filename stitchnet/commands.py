"""The command that composes networks: `stitchkit compose`."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stitchkit.parser import REPEAT, Command
from stitchkit.settings.schema import parse
from stitchnet.settings import ComposeSettings, add_flags, flag_of

if TYPE_CHECKING:
    from stitchnet.compose import CompositionTask
    from stitchnet.journal import Journal

_logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=ComposeSettings)


def _add_compose_flags(command: argparse.ArgumentParser) -> None:
    add_flags(command, ComposeSettings)
    add_output_flags(command)


def add_output_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags that are no settings of a composition."""
    command.add_argument("--download", action="store_true", help="download a missing data set")
    command.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write")


def _compose(flags: argparse.Namespace) -> None:
    from stitchnet.compose import LEDGER, compose

    with begun("compose", flags, ComposeSettings, LEDGER) as (task, settings, journal):
        compose(task, settings, journal)


@contextmanager
def begun(
    name: str, flags: argparse.Namespace, kind: type[Kind], *results: str
) -> Iterator[tuple[CompositionTask, Kind, Journal]]:
    """The task of a command, its settings, and the journal in its folder for resuming it."""
    import torch

    from stitchkit.distributed import choose_device
    from stitchnet.compose import CompositionTask, networks_of
    from stitchnet.journal import resumable

    values = vars(flags)
    folder, download = Path(values.pop("output")), values.pop("download", False)
    values["device"] = str(choose_device(values.get("device")))
    # A resumed command may name the same file by another path.
    is_file = {"data": Path(flags.data).is_dir(), "nets": values.get("nets", "").endswith(".json"), "output_map": True}
    for key in values.keys() & is_file.keys():
        if is_file[key]:
            values[key] = str(Path(values[key]).resolve())
    settings = parse(kind, values, name=flag_of)
    by_flag = {flag_of(key): value for key, value in asdict(settings).items()}
    with _plain_warnings(), resumable(folder, name, by_flag, results, growing="--top") as journal:
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
