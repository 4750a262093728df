"""The commands of stitching jobs."""

from __future__ import annotations

from stitchkit.parser import Commands


def add_commands(commands: Commands) -> None:
    """Add them to the parser."""
