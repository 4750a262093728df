"""The commands of stitching jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stitchkit.parser import Commands


def add_commands(commands: Commands) -> None:
    """Add them to the parser."""
    about = "list the data sets that have a name, or prepare a collection of them"
    datasets = Commands(commands.add("datasets", _list_datasets, about))
    datasets.add("list", _list_datasets, "print the data sets that have a name, and what their folders hold")
    prepare = datasets.add("prepare", _prepare_datasets, "download a collection and lay it out as image folders")
    prepare.add_argument("collection", choices=("merging", "geospatial"), help="merging: 8 tasks; geospatial: 6")
    prepare.add_argument("--root", required=True, metavar="DIR", help="folder to write")
    prepare.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these of the collection")


def _list_datasets(_: dict[str, Any]) -> None:
    from assembly.prepare import COLLECTIONS
    from assembly.sources import SOURCES

    for name, source in sorted(SOURCES.items()):
        print(f"{name:14} {'by hand ' if source.by_hand else 'download'} {source.needs}")
    print(f"{'digits':14} built in")
    for collection, tasks in COLLECTIONS.items():
        print(f"collection {collection}: {', '.join(tasks)}")


def _prepare_datasets(settings: dict[str, Any]) -> None:
    from assembly.prepare import prepare

    prepare(settings["collection"], Path(settings["root"]), settings["only"])
