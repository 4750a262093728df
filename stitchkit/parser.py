"""The declaration of commands, and the parser of their flags, whose errors are one line.

A wing declares its commands in its own `commands.py`, and `pyproject.toml` registers each as an entry point for
`stitchkit.cli`. Commands import only when they run, because torch takes seconds to import.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

from stitchkit.errors import InputError
from stitchkit.files import check_folder_of


class Parser(argparse.ArgumentParser):
    """A parser that raises errors instead of printing them."""

    def error(self, message: str) -> NoReturn:
        """Raise `message` as bad input."""
        raise InputError(f"{message}; see {self.prog} --help")


def _no_flags(parser: argparse.ArgumentParser) -> None:
    """Add nothing, for a command without flags."""


class Command(NamedTuple):
    """A command of `stitchkit`, or a subcommand: what runs with the values of its flags, and its line in `--help`."""

    run: Callable[[argparse.Namespace], None]
    about: str
    add_flags: Callable[[argparse.ArgumentParser], None] = _no_flags


def add_commands(parser: argparse.ArgumentParser, commands: Mapping[str, Command]) -> None:
    """Add commands by name to the parser of the program, or of a command."""
    choices = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in commands.items():
        own = choices.add_parser(name, help=command.about, description=command.about, allow_abbrev=False)
        own.set_defaults(command=command.run, parser=own)
        command.add_flags(own)


def add_network_flags(parser: argparse.ArgumentParser, *, required: bool = False, config: str = "") -> None:
    """Add the flags that define the SN-Net and its images; `config` is the help of its configuration."""
    about = config or "stitch configuration"
    parser.add_argument("--stitch_config", "--stitch-config", required=required, metavar="JSON", help=about)
    parser.add_argument("--num-classes", type=int, metavar="N", help="number of classes; by default as in the models")
    parser.add_argument(
        "--img-size", type=int, metavar="N", help="side of the input image; by default as in the models"
    )


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, as `stitchkit.distributed.choose_device` takes it."""
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; by default cuda if available")


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """All flags of a command, with their aliases."""
    return [name for action in parser._actions for name in action.option_strings]


def usage_of(parser: argparse.ArgumentParser) -> str:
    """A command with its arguments, without its flags."""
    words = [str(action.metavar or action.dest) for action in parser._actions if not action.option_strings]
    return " ".join([parser.prog, *words])


def new_file(path: str) -> Path:
    """The place of a file that a command will write."""
    if os.path.lexists(path):  # also a dangling link, through which we would write elsewhere
        raise InputError(f"'{path}' exists; choose another file or remove it")
    check_folder_of(Path(path))
    return Path(path)
