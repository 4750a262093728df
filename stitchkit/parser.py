"""How commands read their flags: one parser, errors in one line, every command added in the same way."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from stitchkit.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print and exit for."""
        raise InputError(f"{message}; see {self.prog} --help")


class Commands:
    """The commands of a parser.

    Args:
        parser: The parser that gets them, the program's or a command's.
    """

    def __init__(self, parser: argparse.ArgumentParser):
        self._commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(self, name: str, run: Callable[[dict[str, Any]], None], about: str) -> argparse.ArgumentParser:
        """Add a command.

        Args:
            name: What a person types.
            run: What it does, given the values of its flags by name.
            about: One line for `--help`.

        Returns:
            The parser of its flags.
        """
        command = self._commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        command.set_defaults(command=run, parser=command)
        return command


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """Spellings of all flags of a command, aliases too."""
    return [name for action in parser._actions for name in action.option_strings]


def new_file(path: str) -> Path:
    """The place of a file that a command is to write.

    Raises:
        InputError: If there is something already, or no folder to put it in.
    """
    if os.path.lexists(path):  # a link to nothing too
        raise InputError(f"'{path}' exists; choose another file or remove it")
    if not Path(path).parent.is_dir():
        raise InputError(f"folder '{Path(path).parent}' does not exist; make it, or check the path")
    return Path(path)
