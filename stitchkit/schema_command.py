"""The command `schema`: the JSON Schema of a kind of settings, by which editors complete and check a file."""

from __future__ import annotations

import json
from typing import Any

from stitchkit.parser import Commands

KINDS = ("recipe", "stitch-config", "job", "sweep", "collection")


def add_commands(commands: Commands) -> None:
    """Add it to the parser."""
    schema = commands.add("schema", _print_schema, "print the JSON Schema of a kind of settings, for editors")
    schema.add_argument("kind", choices=KINDS, metavar="KIND", help=f"one of {', '.join(KINDS)}")


def _print_schema(settings: dict[str, Any]) -> None:
    print(schema_text(settings["kind"]), end="")


def schema_text(kind: str) -> str:
    """The JSON Schema of a kind, as it is in `stitchkit/settings/schemas`.

    Args:
        kind: One of `KINDS`.
    """
    return json.dumps(_schema(kind), indent=1) + "\n"


def _schema(kind: str) -> dict[str, Any]:
    if kind == "recipe":
        from stitchkit.settings.by_name import recipe_schema

        return recipe_schema()
    if kind == "stitch-config":
        from stitchkit.settings.stitch_config import stitch_config_schema

        return stitch_config_schema()
    if kind == "collection":
        from stitchkit.data.prepare import Collection
        from stitchkit.settings.schema import json_schema

        return json_schema(Collection)
    if kind == "job":
        from stitchkit.assembly.config.job import JobConfig
        from stitchkit.settings.schema import json_schema

        return json_schema(JobConfig)
    from stitchkit.assembly.sweep.config import sweep_schema

    return sweep_schema()
