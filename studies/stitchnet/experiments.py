"""The experiments of the StitchNet paper (section 4), at any scale: each writes a table and a picture.

An experiment gets a task, the settings of a composition and a journal, and yields the rows of its table.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import combinations, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from pydantic import FiniteFloat
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from typing_extensions import TypedDict

from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.files import opened
from stitchkit.measure.figure import BLUE, RED, new_figure, save_figure, side_by_side
from stitchkit.measure.ledger import Row
from stitchkit.measure.pareto import plot
from stitchnet.compose import CompositionTask, begin_search, find_best, judged
from stitchnet.composition import uncut
from stitchnet.data import batches
from stitchnet.journal import Journal
from stitchnet.net import Net
from stitchnet.settings import ComposeSettings
from studies.stitchnet import tuning
from studies.stitchnet.tuning import TuningSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COUNTS = (2, 4, 8, 16, 32, 64, 128, 256)
_SEEDS = 3
_SIZES = range(1, 9)
_DRAWS = 20
_COMPOSED, _PARENTS = BLUE, RED
"""Colours of composed networks and of their parents."""
_DOT = 3
"""Diameter of a network or ensemble in a picture, in typographic points."""

_Member = tuple[Row, np.ndarray]
"""The row of a network, and its scores of all classes for the validation images `[N, classes]`."""


class TunedNetwork(TypedDict):
    """A row of the experiment `finetune`, as its journal keeps it."""

    cfg_id: int
    stitch: str
    flops: int
    params: int
    epoch: int
    samples: int
    acc1: FiniteFloat


class Experiment(NamedTuple):
    """An experiment: the functions that yield and draw its rows, and the columns of its table."""

    run: Callable[[CompositionTask, Any, Journal], Iterator[Row]]
    draw: Callable[[Sequence[Row], Path], None]
    columns: tuple[str, ...]


def study(
    name: str, task: CompositionTask, settings: ComposeSettings, journal: Journal, *, picture: str = ".png"
) -> None:
    """Run an experiment; write `NAME.csv` row by row, and finally its picture with this suffix, beside the journal."""
    experiment = EXPERIMENTS[name]
    table, drawing = journal.path.with_suffix(".csv"), journal.path.with_suffix(picture)
    rows = tqdm(experiment.run(task, settings, journal), desc=name, unit=" rows", leave=False, disable=None)
    with logging_redirect_tqdm():
        written = _written(rows, table, experiment.columns)
    experiment.draw(written, drawing)
    print(f"{table} has {counted(len(written), 'row')}, {drawing} the picture")


def _written(rows: Iterable[Row], path: Path, columns: Sequence[str]) -> list[Row]:
    """Write each row to the table at once; without rows there is no table."""
    written: list[Row] = []
    for row in rows:
        with opened(path, "a" if written else "w", newline="") as file:
            table = csv.DictWriter(file, columns, lineterminator="\n")
            if not written:
                table.writeheader()
            table.writerow(row)
        written.append(row)
    return written


def samples(task: CompositionTask, settings: ComposeSettings, journal: Journal) -> Iterator[Row]:
    """Accuracy of networks composed with few or many stitching images, each number drawn several times.

    Numbers above that of the training images are omitted. A draw that finds nothing is reported and skipped.
    """
    counts = _counts(len(task.train))
    failed: list[InputError] = []
    for count, seed in product(counts, range(_SEEDS)):
        torch.manual_seed(settings.seed)  # random weights must be the same for all numbers
        here = replace(settings, num_images=count, seed=settings.seed + seed)
        search = begin_search(task, here, journal.scope(count, here.seed))
        try:
            best = find_best(search, here.top)
        except InputError as error:
            failed.append(error)
            tqdm.write(f"{counted(count, 'image')}, seed {here.seed}: {error}")
            continue
        for row, _ in judged(search, best, task, search.journal):
            yield {"images": count, "seed": here.seed, **row}
    if len(failed) == len(counts) * _SEEDS:
        raise failed[-1]


def _counts(available: int) -> list[int]:
    counts = [count for count in _COUNTS if count <= available]
    if not counts:
        raise InputError(f"there are only {available} training images to draw from; at least {_COUNTS[0]} are needed")
    if left := _COUNTS[len(counts) :]:
        tqdm.write(f"left out: {', '.join(map(str, left))} stitching images; there are {available} for training")
    return counts


def draw_samples(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over the number of stitching images."""
    with _drawing(path, "stitching images", "Networks composed with few or many images") as axes:
        composed = [row for row in rows if "parents_acc1" in row]
        counts = sorted({row["images"] for row in composed})
        each, parents = (
            [[row[key] for row in composed if row["images"] == count] for count in counts]
            for key in ("acc1", "parents_acc1")
        )
        x, y = ([row[key] for row in composed] for key in ("images", "acc1"))
        axes.scatter(x, y, s=_DOT**2, alpha=0.7, linewidths=0, color=_COMPOSED, label="a composed network")
        axes.plot(counts, [np.mean(one) for one in each], "o-", color=_COMPOSED, label="mean of the composed")
        axes.plot(counts, [max(one) for one in each], "s--", color="#333333", label="best of the composed")
        axes.plot(counts, [np.mean(one) for one in parents], ":", color=_PARENTS, label="mean of their parents")
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])


def front(task: CompositionTask, settings: ComposeSettings, journal: Journal) -> Iterator[Row]:
    """Accuracy and cost of composed networks and their parents."""
    search = begin_search(task, settings, journal)
    for row, _ in judged(search, find_best(search, settings.top), task, journal):
        yield row


draw_front = partial(plot, title="Composed networks and their parents")


def ensembles(task: CompositionTask, settings: ComposeSettings, journal: Journal) -> Iterator[Row]:
    """Accuracy of ensembles of composed networks, and of ensembles of their parents.

    An ensemble chooses the class with the highest mean score over its members.
    """
    search = begin_search(task, settings, journal)
    # No journal here: the scores of all images are too large for it, and every row must come with its network.
    found = judged(search, find_best(search, settings.top), task)
    every = [(row, _scores(net, task)) for row, net in found if net is not None]
    labels = np.concatenate([labels for _, labels in batches(task.validation)])
    parents = [member for member in every if "parents_acc1" not in member[0]]
    composed = every[len(parents) :]
    draw = random.Random(settings.seed)
    for kind, members, sizes in (("parents", parents, range(1, len(parents) + 1)), ("composed", composed, _SIZES)):
        for size in sizes:
            for some in _drawn(members, size, draw):
                yield {"kind": kind, **_together(some, labels)}


def _drawn(members: list[_Member], size: int, draw: random.Random) -> Iterable[Sequence[_Member]]:
    """All ensembles of a size if there are few, otherwise a random sample of them."""
    if size == 1 or math.comb(len(members), size) <= _DRAWS:
        return combinations(members, size)
    return (draw.sample(members, size) for _ in range(_DRAWS))


def _scores(net: Net, task: CompositionTask) -> np.ndarray:
    """Scores of a fitted network for the validation images `[N, classes]`."""
    assert net.classifier is not None
    return net.classifier.scores(net.outputs(task.validation)[0])


def _together(members: Sequence[_Member], labels: np.ndarray) -> Row:
    predicted = np.mean([scores for _, scores in members], axis=0).argmax(1)
    alone = [row["acc1"] for row, _ in members]
    return {
        "size": len(members),
        "members": "+".join(str(row["cfg_id"]) for row, _ in members),
        "flops": sum(row["flops"] for row, _ in members),
        "acc1": 100 * float((predicted == labels).mean()),
        "mean_acc1": float(np.mean(alone)),
        "best_acc1": max(alone),
    }


def draw_ensembles(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over the size of ensembles."""
    with _drawing(path, "networks in the ensemble", "Ensembles of composed networks and of their parents") as axes:
        for kind, color in (("composed", _COMPOSED), ("parents", _PARENTS)):
            these = [row for row in rows if row["kind"] == kind]
            sizes = sorted({row["size"] for row in these})
            means = [np.mean([row["acc1"] for row in these if row["size"] == size]) for size in sizes]
            x, y = ([row[key] for row in these] for key in ("size", "acc1"))
            axes.scatter(x, y, s=_DOT**2, alpha=0.7, linewidths=0, color=color, label=f"an ensemble of {kind}")
            axes.plot(sizes, means, "o-", color=color, label=f"mean of {kind}")


def finetune(task: CompositionTask, settings: TuningSettings, journal: Journal) -> Iterator[Row]:
    """Accuracy of composed networks and their parents over the images seen while all are trained alike.

    Networks are evaluated with their own classifiers, or with a new one that is trained.
    """
    search = begin_search(task, settings, journal)
    files = tuning.checkpoints(journal.path.parent)
    for number, composition in enumerate([*uncut(search.pool.fragments), *find_best(search, settings.top)]):
        rows: list[Row] = []
        while (row := journal.find(TunedNetwork, "row", composition.name, len(rows))) is not None:
            rows.append(Row(**row))
        if not rows or rows[-1]["epoch"] < tuning.EPOCHS:
            net = search.build(composition)
            tuning.train_and_record(
                net, task, partial(_record, rows, journal, net, number), seed=settings.seed, files=files,
                num_recorded=len(rows), head=settings.head, trains=settings.trains, every=settings.eval_every,
            )  # fmt: skip
        yield from rows
    files.clear()
    for path in files.candidates():
        path.unlink()


def _record(rows: list[Row], journal: Journal, net: Net, number: int, measured: tuning.Measured) -> None:
    """Keep the row of an accuracy, unless a killed run has already kept it."""
    if measured.number == len(rows):
        cost = net.get_macs_params()
        about = {"cfg_id": number, "stitch": net.name, "flops": cost["macs"], "params": cost["params"]}
        rows.append({**about, "epoch": measured.epoch, "samples": measured.samples, "acc1": measured.acc1})
        journal.add(rows[-1], "row", net.name, measured.number)


def draw_finetune(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over the images seen in fine-tuning.

    Dashes lie over full lines and dots side by side, so that curves are seen where they coincide.
    """
    title = "Composed networks and their parents (dashed), trained alike"
    with _drawing(path, "images seen in fine-tuning", title) as axes:
        for name in dict.fromkeys(row["stitch"] for row in rows):  # in the order of the table
            these = [row for row in rows if row["stitch"] == name]
            samples = [row["samples"] for row in these]
            accuracies = [row["acc1"] for row in these]
            style, height = ("-", 2) if ">" in name else ("--", 3)
            (line,) = axes.plot(samples, accuracies, style, linewidth=1.2, label=name, zorder=height)
            axes.scatter(samples, accuracies, s=_DOT**2, linewidths=0, color=line.get_color(), zorder=4)


@contextmanager
def _drawing(path: Path, x: str, title: str) -> Iterator[Axes]:
    """A picture of accuracy over `x`, written when the block ends, with a legend below and all its dots seen."""
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel="top-1 accuracy (%)", title=title)
    axes.margins(x=0.07)
    axes.grid(alpha=0.3)
    yield axes
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    dots = np.concatenate([np.empty((0, 2)), *(cloud.get_offsets() for cloud in axes.collections)])
    places = iter(zip(side_by_side(axes, *dots.T, size=_DOT), dots[:, 1], strict=True))
    for cloud in axes.collections:
        cloud.set_offsets(list(islice(places, len(np.asarray(cloud.get_offsets())))))
    save_figure(figure, path)


_JUDGED = ("cfg_id", "stitch", "flops", "params", "score", "acc1", "parents_acc1")
_TOGETHER = ("kind", "size", "members", "flops", "acc1", "mean_acc1", "best_acc1")
EXPERIMENTS = {
    "samples": Experiment(samples, draw_samples, ("images", "seed", *_JUDGED)),
    "front": Experiment(front, draw_front, _JUDGED),
    "ensembles": Experiment(ensembles, draw_ensembles, _TOGETHER),
    "finetune": Experiment(finetune, draw_finetune, tuple(TunedNetwork.__annotations__)),
}
