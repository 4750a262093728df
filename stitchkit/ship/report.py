"""A report: ledgers as one self-contained page, with an interactive plot, a table and the curves of training."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from itertools import chain
from pathlib import Path
from typing import TypedDict

from stitchkit._version import __version__
from stitchkit.display import counted, plural
from stitchkit.errors import InputError
from stitchkit.files import check_folder_of, read_table
from stitchkit.measure.figure import check_plot
from stitchkit.measure.intervals import add_intervals, compared_beside, told_apart_note
from stitchkit.measure.latency_verdict import ALLOW, latency_note, unreliable, without_unreliable
from stitchkit.measure.ledger import (
    COSTS,
    WITH_INTERVALS,
    Row,
    check_figures,
    difference,
    nouns_of,
    read_rows,
    strict_json,
)
from stitchkit.measure.ledger_origin import origin_file
from stitchkit.measure.metric import METRICS, compared, compared_note, in_sentence, metric_of
from stitchkit.measure.overlay import Overlay, read_overlay, verdict
from stitchkit.measure.pareto import in_view, is_anchor, pareto_front, plot
from stitchkit.measure.profile import Profiler
from stitchkit.model.create import create_snnet
from stitchkit.networks.meta import without_values
from stitchkit.optional import optional
from stitchkit.routes import Stitch, StitchSpace
from stitchkit.settings.files import read_settings_file
from stitchkit.settings.recipe import Recipe
from stitchkit.ship.export_command import export_commands
from stitchkit.ship.route_drawing import colors_of, depths_of, draw_route
from stitchkit.ship.write_page import write_page

_logger = logging.getLogger(__name__)


class Content(TypedDict):
    """Everything that a report shows of a ledger; `metric` is the same for all ledgers of a report.

    Rows have `by_cost`, what depends on the cost: P(on the front) and ties; `told_apart` is a sentence for each cost.
    """

    name: str
    path: str
    rows: list[Row]
    colors: dict[str, str]
    routes: dict[str, str]
    metric: str
    notes: list[str]
    told_apart: dict[str, str]
    settings: dict[str, dict[str, str]]


_Network = tuple[StitchSpace, Callable[[], Profiler]]
_RUN = "stitches_res"
_OURS = b'<meta name="generator" content="stitchkit report">'  # what the head of every report has
_MOST_BLOCKS = 1000


def read_ledgers(
    paths: Sequence[str | Path], stitch_config: str | None = None, *, allow_unreliable: bool = False,
    metric: str | None = None,
) -> list[Content]:  # fmt: skip
    """The content of a report on ledgers of a stitch configuration, with a short name for each.

    Unreliable latencies are left out unless they are allowed. The metric is as in `metric_of`.
    """
    files = [Path(path) for path in paths]
    if len({os.path.realpath(file) for file in files}) < len(files):
        raise InputError("a ledger is given twice; give each once")
    network = _network(stitch_config) if stitch_config else None
    names = [Path(os.path.realpath(file)).parent.name if file.stem == _RUN else file.stem for file in files]
    if len(set(names)) < len(names):
        names = [str(file) for file in files]
    ledgers = [read_rows(file) for file in files]
    for file, rows in zip(files, ledgers, strict=True):
        if unreliable(rows) and not allow_unreliable:
            _logger.warning("the latencies of '%s' are unreliable and omitted; %s shows them", file, ALLOW)
            rows[:] = without_unreliable(rows)
    metric = metric_of([*chain.from_iterable(ledgers)], metric)
    named = zip(names, files, ledgers, strict=True)
    return [_read_ledger(name, file, rows, network, stitch_config, metric) for name, file, rows in named]


def _network(stitch_config: str) -> _Network:
    """The stitches of a configuration and their costs; weights are created only when a cost is needed."""
    with without_values():
        space = create_snnet(stitch_config, checkpoints=False).space
    return space, cache(lambda: Profiler(create_snnet(stitch_config, checkpoints=False)))


def _read_ledger(
    name: str, path: Path, rows: list[Row], network: _Network | None, stitch_config: str | None, metric: str
) -> Content:
    check_figures(rows, ("flops", metric))  # needed to draw anything
    if network is not None:
        _add_names(rows, network, path)
    note, rows = compared_note(rows, metric), compared(rows, metric)
    stitches = {row["stitch"]: Stitch.parse(row["stitch"]) for row in rows if "stitch" in row}
    depths = depths_of(network[0] if network is not None else stitches.values())
    if (most := max(depths.values(), default=0)) > _MOST_BLOCKS:
        raise InputError(f"ledger '{path}' has an anchor of {most} blocks; at most {_MOST_BLOCKS} are drawn")
    commands = export_commands(path, [row["cfg_id"] for row in rows], stitch_config)
    costed = {cost: [row for row in rows if cost in row] for cost in COSTS.values()}
    fronts = {cost: pareto_front(some, cost, metric) for cost, some in costed.items() if some}
    known = compared_beside(path, metric)
    comparisons: dict[str, dict[int, Row]] = {}
    for cost in fronts:  # P(on the front) and ties differ between costs
        add_intervals(rows, known, cost)
        keys = ("p_front", "tied_with")
        comparisons[cost] = {row["cfg_id"]: {key: row[key] for key in keys if key in row} for row in rows}
    told_apart = {cost: told_apart_note(front, known, metric) for cost, front in fronts.items()}
    return {
        "name": name,
        "path": str(path),
        "rows": [
            {
                **row,
                "anchor": is_anchor(row),
                "front": [cost for cost, front in fronts.items() if row in front],
                "by_cost": {cost: figures[row["cfg_id"]] for cost, figures in comparisons.items()},
                "command": command,
            }
            for row, command in zip(rows, commands, strict=True)
        ],
        "colors": colors_of(depths),
        "routes": {name: draw_route(stitch, depths) for name, stitch in stitches.items()},
        "metric": metric,
        "notes": [*filter(None, [latency_note(rows), note])],
        "told_apart": told_apart if metric in WITH_INTERVALS else {},
        "settings": _settings(path),
    }


def _add_names(rows: Sequence[Row], network: _Network, path: Path) -> None:
    space, profiler = network
    for row in rows:
        # A row with a name may have other classes or another image size, which change its FLOPs.
        if contradiction := difference(row, space, None if "stitch" in row else profiler().cost):
            raise InputError(
                f"ledger '{path}' is not of the {len(space)} stitches of --stitch-config: {contradiction}; give the "
                "configuration that it was measured with, or none"
            )
        row["stitch"] = space[row["cfg_id"]].name


def _settings(ledger: Path) -> dict[str, dict[str, str]]:
    """The settings that differ from the defaults, by the file beside a ledger that they are in."""
    evaluation = ledger.with_name("eval_args.yaml")
    # A ledger that was moved may have only the file that belongs to it.
    evaluation = evaluation if evaluation.is_file() else origin_file(ledger)
    training, composition = (ledger.with_name(name) for name in ("args.yaml", "compose.yaml"))
    files = {"training": training, "evaluation": evaluation, "composition": composition}
    defaults = Recipe().flat()
    return {
        f"{use}, {file.name}": {
            str(key): value if isinstance(value, str) else json.dumps(value, default=str)
            for key, value in content.items()
            if value != defaults.get(key)
        }
        for use, file in files.items()
        if file.is_file() and (content := read_settings_file(file))
    }


def _training(folder: Path) -> dict[str, object]:
    content: dict[str, object] = {}
    if curves := _columns(folder / "summary.csv", ["epoch"]):
        figures = {key: [*map(_number, column)] for key, column in curves.items()}
        content["curves"] = figures | {"epoch": _from_1(figures["epoch"])}
    if losses := _columns(folder / "losses.csv", ["epoch", "cfg_id", "stitch", "loss"]):
        content["losses"] = _stitch_losses(losses)
    return content


def _columns(path: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    """The columns of a CSV file of a run; none if there is no such file."""
    if not path.is_file():
        return {}
    table = read_table(path, grows=True)
    for key in needed if table else ():
        if key not in table:
            raise InputError(f"'{path}' has no column '{key}'; move it away for a report without training")
    return table


def _stitch_losses(table: Mapping[str, Sequence[str]]) -> dict[str, object]:
    """Mean loss by stitch (rows, in the order of `cfg_id`) and epoch (columns)."""
    numbers, epochs, losses = ([*map(_number, table[key])] for key in ("cfg_id", "epoch", "loss"))
    cfg_ids = {stitch: number or 0 for stitch, number in zip(table["stitch"], numbers, strict=True)}
    means = dict(zip(zip(table["stitch"], epochs, strict=True), losses, strict=True))
    stitches, columns = sorted(cfg_ids, key=cfg_ids.__getitem__), sorted(set(epochs), key=lambda epoch: epoch or 0)
    grid = [[means.get((stitch, epoch)) for epoch in columns] for stitch in stitches]
    return {"epochs": _from_1(columns), "stitches": stitches, "means": grid}


def _from_1(epochs: Sequence[float | None]) -> list[float | None]:
    return [None if epoch is None else epoch + 1 for epoch in epochs]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def overlay_verdicts(contents: Sequence[Content], overlay: Overlay) -> dict[str, str]:
    """Where a single model beats the stitches of each ledger, by the costs that ledgers and models have."""
    sentences = {}
    for cost in (cost for cost in COSTS.values() if any(cost in model for model in overlay.models)):
        fronts = {content["name"]: [row for row in content["rows"] if cost in row["front"]] for content in contents}
        texts = {name: verdict(front, overlay.models, cost) for name, front in fronts.items() if front}
        if texts:
            named = [text if len(contents) == 1 else f"{name}: {text}" for name, text in texts.items()]
            sentences[cost] = " · ".join(named)
    return sentences


def _overlay(contents: Sequence[Content], overlay: Overlay) -> dict[str, object]:
    """What the page shows of other models: each with the costs where it is near the rows, and on the front."""
    verdicts = overlay_verdicts(contents, overlay)
    models: list[Row] = [{**model, "near": [], "front": []} for model in overlay.models]
    for cost in verdicts:
        near, front = in_view(models, [row for row in _rows(contents) if cost in row], cost)
        for key, some in (("near", near), ("front", front)):
            for model in some:
                model[key].append(cost)
    return {"caption": overlay.caption, "verdicts": verdicts, "models": [model for model in models if model["near"]]}


def _rows(contents: Sequence[Content]) -> list[Row]:
    return [row for content in contents for row in content["rows"]]


def write_report(
    output: str | Path, contents: Sequence[Content], *, title: str = "", overlay: Overlay | None = None
) -> None:
    """Write the page of the result of `read_ledgers`; it replaces an earlier report, but no other file."""
    output = Path(output)
    if output.suffix not in (".html", ".htm"):
        raise InputError(f"'{output}' must be a page; give a name that ends with .html")
    check_folder_of(output)
    if output.is_file() and _OURS not in output.read_bytes()[:1000]:
        raise InputError(f"'{output}' exists and is not a report of stitchkit; choose another file or remove it")
    names = [content["name"] for content in contents]
    rows = _rows(contents)
    noun, uncut = nouns_of(rows)
    nouns = noun if len(rows) == 1 else plural(noun)
    title = title or f"{nouns.capitalize()} of " + (" and ".join(names) if len(names) < 3 else f"{len(names)} ledgers")
    # By folder: the ledgers of one run share its curves, which are shown once.
    folders = {Path(content["path"]).parent: content["name"] for content in contents}
    training = [{"name": name, **curves} for folder, name in folders.items() if (curves := _training(folder))]
    others = _overlay(contents, overlay) if overlay else None
    metric = contents[0]["metric"]
    words = {"noun": noun, "nouns": nouns, "uncut": uncut, "metric": metric, "metric_name": in_sentence(metric)}
    data = strict_json({"ledgers": contents, "training": training, "overlay": others, **words})
    parts = {
        "title": escape(title),
        "noun": noun,
        "nouns": nouns.capitalize(),
        "metric": METRICS[metric],
        "version": __version__,
        # Data must not end the script element; JavaScript reads these escapes as the same text.
        "data": data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        "plotly": optional("plotly.offline", "report", "a report").get_plotlyjs(),
    }
    write_page(output, "report.html", parts)


def run(flags: argparse.Namespace) -> None:
    """Run `stitchkit report`."""
    if flags.plot:
        check_plot(flags.plot)
    options = {"allow_unreliable": flags.allow_unreliable, "metric": flags.metric}
    contents = read_ledgers(flags.ledgers, flags.stitch_config, **options)
    metric = contents[0]["metric"]
    every = [row for content in contents for row in content["rows"]]
    costs = [cost for cost in COSTS.values() if any(cost in row for row in every)]
    overlay = read_overlay(flags.overlay, costs, metric) if flags.overlay else None
    write_report(flags.output, contents, title=flags.title, overlay=overlay)
    print(f"{flags.output} shows {counted(len(every), nouns_of(every)[0])}; open it in a browser")
    if overlay:
        print(f"{next(iter(overlay_verdicts(contents, overlay).values()))} {overlay.remark}")
    if flags.plot:
        rows = {content["name"]: content["rows"] for content in contents}
        plot(rows, flags.plot, title=flags.title, overlay=overlay, metric=metric)
        print(f"the plot is {flags.plot}")
