"""The `schema` command: prints the JSON Schema with which editors complete and check a file of settings."""

from __future__ import annotations

import argparse
import json
from importlib.metadata import entry_points

from stitchkit.parser import Command

_KINDS = "stitchkit.schemas"
"""The entry points that make the schema of each kind; this wing cannot import those of jobs, which lie above it."""


def kinds() -> list[str]:
    """The kinds of settings that have a schema."""
    return sorted(entry_points(group=_KINDS).names)


def schema_text(kind: str) -> str:
    """The JSON Schema of one of `kinds`, as committed in `stitchkit/settings/schemas`."""
    (entry,) = entry_points(group=_KINDS, name=kind)
    return json.dumps(entry.load()(), indent=1) + "\n"


def _add_schema_flags(parser: argparse.ArgumentParser) -> None:
    names = kinds()
    parser.add_argument("kind", choices=names, metavar="KIND", help=f"one of {', '.join(names)}")


def _schema(flags: argparse.Namespace) -> None:
    print(schema_text(flags.kind), end="")


schema = Command(_schema, "print the JSON Schema of a kind of settings, for editors", _add_schema_flags)
