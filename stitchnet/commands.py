"""The command that composes networks: `stitchkit compose`."""

from __future__ import annotations

import argparse

from stitchkit.parser import REPEAT, Command
from stitchnet.settings import ComposeSettings, add_flags


def _add_compose_flags(command: argparse.ArgumentParser) -> None:
    add_flags(command, ComposeSettings)
    add_output_flags(command)


def add_output_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags that are no settings of a composition."""
    command.add_argument("--download", action="store_true", help="download a missing data set")
    command.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write")


compose = Command(
    "stitchnet.compose:run", "compose networks from fragments of pretrained ones, without training", _add_compose_flags,
    resumes=REPEAT,
)  # fmt: skip
