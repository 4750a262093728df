"""The commands about settings: `schema`, for editors, and `zoo`, the configurations to choose from."""

from __future__ import annotations

import argparse
import json
from importlib.metadata import entry_points
from pathlib import Path

from stitchkit.display import count
from stitchkit.files import write_text
from stitchkit.parser import Command

_KINDS = "stitchkit.schemas"
"""The entry points that make the schema of each kind; this wing cannot import those of jobs, which lie above it."""
_COPIES = Path(__file__).with_name("schemas")


def kinds() -> list[str]:
    """The kinds of settings that have a schema."""
    return sorted(entry_points(group=_KINDS).names)


def schema_text(kind: str) -> str:
    """The JSON Schema of one of `kinds`, generated from the settings themselves."""
    (entry,) = entry_points(group=_KINDS, name=kind)
    return json.dumps(entry.load()(), indent=1) + "\n"


def write_schemas() -> None:
    """Update the copies in `stitchkit/settings/schemas` after a change of the settings."""
    for kind in kinds():
        write_text(_COPIES / f"{kind}.json", schema_text(kind))


def _add_schema_flags(parser: argparse.ArgumentParser) -> None:
    names = kinds()
    parser.add_argument("kind", choices=names, metavar="KIND", help=f"one of {', '.join(names)}")


def _schema(flags: argparse.Namespace) -> None:
    # The committed copy, because making the schemas of jobs takes seconds: those of their parts are made of modules.
    print((_COPIES / f"{flags.kind}.json").read_text(encoding="utf-8"), end="")


schema = Command(_schema, "print the JSON Schema of a kind of settings, for editors", _add_schema_flags)


def _add_zoo_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-flops", type=count, metavar="N", help="only with a stitch below N FLOPs, such as 5G")
    parser.add_argument("--licence", metavar="NAME", help="only weights with this licence, such as apache-2.0")


zoo = Command(
    "stitchkit.settings.zoo:run",
    "list families of pretrained networks, ready for stitching, with their FLOPs",
    _add_zoo_flags,
)
