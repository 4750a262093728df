"""A report: ledgers as one self-contained page, with an interactive plot, a table and the curves of training."""

from __future__ import annotations

import csv
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from stitchkit._version import __version__
from stitchkit.errors import InputError
from stitchkit.files import check_folder_of, write_text
from stitchkit.measure.ledger import Row, check_figures, difference, read_rows, strict_json
from stitchkit.measure.pareto import is_anchor, pareto_front
from stitchkit.optional import optional
from stitchkit.routes import Stitch, StitchSpace
from stitchkit.settings.by_name import read_settings
from stitchkit.ship.route_drawing import colors_of, depths_of, draw_route

if TYPE_CHECKING:
    from stitchkit.measure.profile import Cost

    _Network = tuple[StitchSpace, Callable[[int], Cost]]


class Training(TypedDict, total=False):
    """The curves of the run that a ledger belongs to."""

    folder: str
    curves: dict[str, list[float | None]]
    losses: dict[str, list[object]]


class Content(TypedDict):
    """Everything that a report shows of a ledger."""

    path: str
    rows: list[Row]
    colors: dict[str, str]
    routes: dict[str, str]
    training: Training | None


_PLACE = re.compile(r"\{\{(\w+)\}\}")
_RUN = "stitches_res"
_MOST_BLOCKS = 1000
_COSTS = ("flops", "params", "latency_ms")
"""The figures over which the page draws accuracy, each with its own front."""


def write_report(output: str | Path, contents: Mapping[str, Content], *, title: str = "") -> None:
    """Write the page of the result of `read_ledgers`, replacing an existing file."""
    output = Path(output)
    if output.suffix not in (".html", ".htm"):
        raise InputError(f"'{output}' must be a page; give a name that ends with .html")
    check_folder_of(output)
    title = title or "Stitches of " + (" and ".join(contents) if len(contents) < 3 else f"{len(contents)} ledgers")
    write_text(output, page(contents, title=title))


def read_ledgers(paths: Sequence[str | Path], stitch_config: str | None = None) -> dict[str, Content]:
    """The content of a report on ledgers of a stitch configuration, by a short name for each."""
    places = [Path(path) for path in paths]
    if len({place.resolve() for place in places}) < len(places):
        raise InputError("a ledger is given twice; give each once")
    network = _network(stitch_config) if stitch_config else None
    names = [place.resolve().parent.name if place.stem == _RUN else place.stem for place in places]
    if len(set(names)) < len(names):
        names = [str(place) for place in places]
    return {name: _read_ledger(place, network, stitch_config) for name, place in zip(names, places, strict=True)}


def _network(stitch_config: str) -> _Network:
    """The stitches of a configuration and their costs; weights are built only when a cost is needed."""
    import torch

    from stitchkit.measure.profile import Profiler  # slow to import
    from stitchkit.model.create import create_snnet

    with torch.device("meta"):
        space = create_snnet(stitch_config).space
    profiler = cache(lambda: Profiler(create_snnet(stitch_config)))
    return space, lambda cfg_id: profiler().cost(cfg_id)


def _read_ledger(path: Path, network: _Network | None, stitch_config: str | None) -> Content:
    rows = read_rows(path)
    check_figures(rows, ("flops", "acc1"))  # needed to draw anything
    if network is not None:
        rows = [_named(row, network, path) for row in rows]
    stitches = {row["stitch"]: Stitch.parse(row["stitch"]) for row in rows if "stitch" in row}
    depths = depths_of(network[0] if network else stitches.values())
    if (most := max(depths.values(), default=0)) > _MOST_BLOCKS:
        raise InputError(
            f"ledger '{path}' has a stitch of an anchor of {most} blocks; at most {_MOST_BLOCKS} are drawn"
        )
    commands = take_away(path, [row["cfg_id"] for row in rows], stitch_config)
    costed = {cost: [row for row in rows if cost in row] for cost in _COSTS}
    fronts = {cost: pareto_front(some, cost) for cost, some in costed.items() if some}
    return {
        "path": str(path),
        "rows": [
            {
                **row,
                "anchor": is_anchor(row),
                "front": [cost for cost, front in fronts.items() if row in front],
                "command": command,
            }
            for row, command in zip(rows, commands, strict=True)
        ],
        "colors": colors_of(depths),
        "routes": {name: draw_route(stitch, depths) for name, stitch in stitches.items()},
        "training": _training(path.parent),
    }


def _named(row: Row, network: _Network, path: Path) -> Row:
    """A row with the name of its stitch."""
    space, cost = network
    found = difference(row, space, cost) if "stitch" not in row else _other_name(row, space)
    if found:
        raise InputError(
            f"ledger '{path}' is not of the {len(space)} stitches of --stitch_config: {found}; give the configuration "
            "that it was measured with, or none"
        )
    return {**row, "stitch": space[row["cfg_id"]].name}


def _other_name(row: Row, space: StitchSpace) -> str:
    """The contradiction between a row's name and the stitches; FLOPs may differ, by classes and image size."""
    cfg_id, name = row["cfg_id"], row["stitch"]
    if 0 <= cfg_id < len(space) and space[cfg_id].name == name:
        return ""
    return f"it has cfg_id {cfg_id} as {name}"


def take_away(path: Path, cfg_ids: Iterable[int], stitch_config: str | None) -> list[str]:
    """The commands that export networks of a ledger as ONNX files."""
    export, commands = _export_command(path, stitch_config), []
    for number in cfg_ids:
        composed = path.with_name(f"{number:03d}")
        if (composed / "net.json").is_file():  # `stitchkit compose` leaves its networks beside the ledger
            code = f'import stitchnet; stitchnet.load({str(composed)!r}).save_onnx("net{number}.onnx")'
            commands.append(shlex.join(["python", "-c", code]))
        else:
            commands.append(f"{export} --cfg_id {number} -o stitch{number}.onnx")
    return commands


def _export_command(path: Path, stitch_config: str | None) -> str:
    """The start of the export command of a ledger, from the files beside it; unknown parts are in capitals."""
    # The settings of the evaluation have everything an export needs: weights, images to compare on, their preparation.
    settings: Mapping[str, object] = {}
    if (beside := path.with_name("eval_args.yaml")).is_file():
        settings = read_settings(str(beside))  # as the command will, which must not fail later
    words = ["stitchkit", "export", *(["-c", str(beside)] if settings else [])]
    if stitch_config or not settings.get("stitch_config"):
        words += ["--stitch_config", stitch_config or "CONFIG.json"]
    if not settings.get("resume"):
        last = path.with_name("last.pth.tar")
        words += ["--resume", str(last) if last.exists() else "CHECKPOINT"]
    return shlex.join(words)


def _training(folder: Path) -> Training | None:
    """The curves of the run in a folder; None without any."""
    found = Training(folder=str(folder))
    if (summary := folder / "summary.csv").is_file():
        lines = _read_table(summary, ["epoch"])
        found["curves"] = {key: [_number(line[key]) for line in lines] for key in (lines[0] if lines else ())}
    if (losses := folder / "losses.csv").is_file():
        found["losses"] = _stitch_losses(_read_table(losses, ["epoch", "cfg_id", "stitch", "loss"]))
    return found if len(found) > 1 else None


def _read_table(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as file:
            head, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' cannot be read: {error}; move it away to leave training out") from error
    for key in needed if head else ():
        if key not in head:
            raise InputError(f"'{path}' has no column '{key}'; move it away to leave training out of the report")
    return [dict(zip_longest(head, row[: len(head)], fillvalue="")) for row in rows]


def _stitch_losses(lines: Sequence[Mapping[str, str]]) -> dict[str, list[object]]:
    """Mean loss by stitch (rows, in the order of `cfg_id`) and epoch (columns)."""
    means = {(line["stitch"], line["epoch"]): _number(line["loss"]) for line in lines}
    epochs = sorted({line["epoch"] for line in lines}, key=lambda text: _number(text) or 0)
    numbers = {line["stitch"]: _number(line["cfg_id"]) or 0 for line in lines}
    stitches = sorted(numbers, key=lambda stitch: numbers[stitch])
    grid = [[means.get((stitch, epoch)) for epoch in epochs] for stitch in stitches]
    return {"epochs": [_number(epoch) for epoch in epochs], "stitches": [*stitches], "means": [*grid]}


def _number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def page(contents: Mapping[str, Content], *, title: str) -> str:
    """The page of the result of `read_ledgers`."""
    plotly = optional("plotly.offline", "report", "a report")
    # By folder: the ledgers of one run share its curves, which are shown once.
    found = {name: content["training"] for name, content in contents.items()}
    curves = {training["folder"]: {"name": name, **training} for name, training in found.items() if training}
    shown = {
        "ledgers": [{"name": name, **content} for name, content in contents.items()],
        "training": list(curves.values()),
    }
    files = resources.files("stitchkit.ship") / "page"
    parts = {
        "title": escape(title),
        "version": __version__,
        # Data must not end the script element; JavaScript reads these escapes as the same text.
        "data": strict_json(shown).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        "plotly": plotly.get_plotlyjs(),
        "style": (files / "report.css").read_text(encoding="utf-8"),
        "plot": (files / "plot.js").read_text(encoding="utf-8"),
        "script": (files / "report.js").read_text(encoding="utf-8"),
    }
    # In one pass, so that {{...}} inside a part, such as a ledger's name, is not replaced.
    return _PLACE.sub(lambda match: parts[match[1]], (files / "report.html").read_text(encoding="utf-8"))
