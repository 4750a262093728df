"""The file of a sweep: its kind, which its keys tell, and the schema of all kinds together."""

from __future__ import annotations

from pathlib import Path

from pydantic.json_schema import JsonSchemaValue

from stitchkit.assembly.sweep.kinds.by_dataset import DatasetsFile, plan_datasets
from stitchkit.assembly.sweep.kinds.cross import plan_cross
from stitchkit.assembly.sweep.kinds.gaps import GapFile, GapSweep, plan_gaps
from stitchkit.assembly.sweep.kinds.search import plan_search
from stitchkit.assembly.sweep.kinds.search_file import SearchFile
from stitchkit.assembly.sweep.plan import Sweep
from stitchkit.assembly.sweep.settings import CrossFile
from stitchkit.settings.files import read_settings_file
from stitchkit.settings.kinds import kind_of
from stitchkit.settings.schema import json_schema


def load_sweep(path: str | Path, **changes: object) -> Sweep:
    """The sweep in a file, with `changes` to the settings of its jobs, as in `JobConfig.load`."""
    _, kind = kind_of(read_settings_file(path))
    if kind == "search":
        return plan_search(path, **changes)
    if kind == "heads by encoders":
        return plan_cross(path, **changes)
    if kind == "gaps":
        return plan_gaps(GapSweep.load(path, **changes))
    return plan_datasets(path, **changes)


def sweep_schema() -> JsonSchemaValue:
    """The JSON Schema of a sweep's file: the keys of all kinds, of which each file has those of one."""
    kinds = [json_schema(kind) for kind in (GapFile, DatasetsFile, CrossFile, SearchFile)]
    return {
        **kinds[0],
        "$defs": {name: part for kind in kinds for name, part in kind["$defs"].items()},
        "description": " ".join(kind["description"] for kind in kinds),
        "properties": {name: part for kind in reversed(kinds) for name, part in kind["properties"].items()},
        "anyOf": [{"required": kind["required"]} for kind in kinds],
    }
