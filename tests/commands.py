"""Commands: their parsers, and what they say when they refuse what they are given."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from stitchkit.cli import main


def refused(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    """Run a command that must end with status 2; the one line that it ends with."""
    capsys.readouterr()
    assert main([*map(str, command)]) == 2, command
    # torch has a line of its own on a machine without a GPU.
    lines = [line for line in capsys.readouterr().err.splitlines() if "CUDA_HOME" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("stitchkit: error: ")
    return lines[0]


def commands_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of a program's commands and their subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for own in action.choices.values():
                yield own
                yield from commands_of(own)
