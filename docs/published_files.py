"""Read the settings files of the published repositories, and write the table of docs/published_files.md.

    PYTHONPATH=. python docs/published_files.py CHECKOUT...

A checkout is a folder with the files of a published repository. Nothing is downloaded or trained: a file of a job or
sweep is planned as by `stitchkit sweep --dry-run`, and its networks are built without weights.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import yaml

from stitchkit.assembly.sweep.config import load_sweep
from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.settings.by_name import read_settings
from stitchkit.settings.stitch_config import StitchConfig

PAGE = Path(__file__).resolve().parent / "published_files.md"
BEFORE = "<!-- table -->\n"
HEAD = "| repository | file | how it is read | what is said |\n| --- | --- | --- | --- |\n"
OTHERS = ("environment.yml", ".github", "simmim", "swin", "swinmlp", "swinmoe", "swinv2")
"""Files and folders that have no settings of stitching: those of conda, of CI, and of the repositories built upon."""
Verdict = Literal["unchanged", "warning", "refused"]


@dataclass(frozen=True)
class Row:
    """How a file is read; `said` are our warnings, or the reason why it is refused."""

    repository: str
    file: str
    verdict: Verdict
    said: str = ""

    def __str__(self) -> str:
        return f"| {self.repository} | `{self.file}` | {self.verdict} | {self.said} |"


class _Heard(logging.Handler):
    """The warnings that our readers log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        self.said.append(record.getMessage())


def settings_files(checkout: Path) -> list[Path]:
    """The settings files of a checkout, in the order of their names."""
    found = [path for kind in ("*.yml", "*.yaml", "*.json") for path in checkout.rglob(kind)]
    return sorted(path for path in found if not {*path.relative_to(checkout).parts} & {*OTHERS})


def read(path: Path, checkout: Path) -> Row:
    """Read one file with the reader of its kind."""
    heard, root = _Heard(), logging.getLogger("stitchkit")
    root.addHandler(heard)
    name = str(path.relative_to(checkout))
    verdict: Verdict
    try:
        said = _read(path)
        verdict, lines = "warning" if heard.said else "unchanged", [*heard.said, said]
    except InputError as error:
        verdict, lines = "refused", [str(error)]
    finally:
        root.removeHandler(heard)
    # The page must not depend on where the checkouts are.
    return Row(checkout.name, name, verdict, " ".join(lines).replace(f"{checkout}/", "").strip())


def _read(path: Path) -> str:
    """Read a file, and return what a reader of the page must know."""
    if path.suffix == ".json":
        StitchConfig.load(path)
        return ""
    if path.suffix == ".yaml":
        read_settings(str(path))
        return ""
    content = yaml.load(path.read_text(), _Plain)
    if isinstance(content, list):
        users = [other for other in path.parent.glob("*.yml") if f"!include {path.name}" in other.read_text()]
        for user in sorted(users):
            with suppress(InputError):  # a reason of its own
                load_sweep(user)
                return f"a list, included by {counted(len(users), 'other')}"
        raise InputError("no file that includes it is read")
    if "ft_configs" in content:
        # Results of trainings that are not published; only their settings are read here.
        stand_in = next(path.parent.glob("ft-*100.yml")).read_text()
        with TemporaryDirectory() as folder, _working(Path(folder)):
            for file in map(Path, content["ft_configs"]):
                if not file.resolve().is_relative_to(Path.cwd()):
                    raise InputError(f"ft_configs names '{file}', but stand-ins are written only to relative paths")
                file.parent.mkdir(parents=True)
                file.write_text(stand_in)
                file.with_name("checkpoint.pth").touch()
            load_sweep(path)
        return "with stand-ins for the trainings that it names"
    if "command" in content:
        with _working(Path.cwd(), CONFIG=str(path.parents[1] / "moe-stitch/baseline-resnet-cifar-resisc.yml")):
            load_sweep(path)
        return "with `CONFIG=moe-stitch/baseline-resnet-cifar-resisc.yml`, as its comment says"
    load_sweep(path)
    return ""


@contextmanager
def _working(folder: Path, **environment: str) -> Iterator[None]:
    """Work in a folder and with further variables, both as they were afterwards."""
    place, variables = Path.cwd(), dict(os.environ)
    os.chdir(folder)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.chdir(place)
        for name in environment:
            os.environ.pop(name)
        os.environ.update(variables)


class _Plain(yaml.SafeLoader):
    """Reads a file without those that it includes."""


_Plain.add_constructor("!include", lambda _, node: str(node.value))


def table(rows: Sequence[Row]) -> str:
    """The table of the page, after a line with the counts."""
    found = Counter(row.verdict for row in rows)
    counts = ", ".join(f"{found[verdict]} {verdict}" for verdict in ("unchanged", "warning", "refused"))
    return f"{len(rows)} files: {counts}.\n\n{HEAD}" + "".join(f"{row}\n" for row in rows)


def _commit(checkout: Path) -> str:
    """The commit of a checkout, in words."""
    shown = subprocess.check_output(["git", "-C", str(checkout), "log", "-1", "--format=%h of %cs"], text=True)
    return f"{checkout.name} at {shown.strip()}"


def main(checkouts: Sequence[str]) -> None:
    """Read all files of some checkouts and replace the end of the page."""
    places = [Path(place).resolve() for place in checkouts]
    rows = [read(path, place) for place in places for path in settings_files(place)]
    made = f"Made on {date.today()} from {' and '.join(map(_commit, places))}.\n\n"
    PAGE.write_text(PAGE.read_text().partition(BEFORE)[0] + BEFORE + made + table(rows))


if __name__ == "__main__":
    if not sys.argv[1:] or not all(map(os.path.isdir, sys.argv[1:])):
        sys.exit("give the folders of the checkouts; without them the page would lose its rows")
    main(sys.argv[1:])
