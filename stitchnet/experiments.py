"""The experiments of the StitchNet paper, at any scale: each gives a table and a picture."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from stitchkit.measure.ledger import Row
from stitchkit.measure.pareto import plot
from stitchnet import pictures
from stitchnet.compose import Plan
from stitchnet.composition import uncut
from stitchnet.data import batches
from stitchnet.net import Net
from stitchnet.task import Task, judged
from stitchnet.tuning import fine_tune

_COUNTS = (2, 4, 8, 16, 32, 64, 128, 256)
_SEEDS = 3
_SIZES = range(1, 9)
_DRAWS = 20


def study(name: str, task: Task, plan: Plan, output: Path) -> None:
    """Do an experiment; write `NAME.csv` and `NAME.png`.

    Args:
        name: `samples`, `front`, `ensembles` or `finetune`.
        task: What networks are judged on.
        plan: What is composed.
        output: Folder to write.

    Raises:
        InputError: If anything that was given cannot be used, or nothing is found.
    """
    run, draw = {
        "samples": (samples, pictures.draw_samples),
        "front": (front, plot),
        "ensembles": (ensembles, pictures.draw_ensembles),
        "finetune": (finetune, pictures.draw_finetune),
    }[name]
    rows = list(tqdm(run(task, plan), desc=name, unit=" rows", leave=False, disable=None))
    output.mkdir(parents=True, exist_ok=True)
    with (output / f"{name}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    draw(rows, output / f"{name}.png")
    print(f"{len(rows)} rows are in {output / name}.csv, the picture is {output / name}.png")


def samples(task: Task, plan: Plan) -> Iterator[Row]:
    """How good networks are that are composed with few or many stitching images, each number drawn several times.

    Args:
        task: What they are judged on.
        plan: What is composed, but for the number of images.

    Source: StitchNet, section 4.
    """
    for count, seed in product(_COUNTS, range(_SEEDS)):
        here = replace(plan, num_images=count, seed=plan.seed + seed)
        search = here.search(task)
        for row, _ in judged(search, here.best(search), task):
            yield {"images": count, "seed": here.seed, **row}


def front(task: Task, plan: Plan) -> Iterator[Row]:
    """Accuracy and cost of composed networks and of those that gave their fragments.

    Args:
        task: What they are judged on.
        plan: What is composed.

    Source: StitchNet, section 4.
    """
    search = plan.search(task)
    for row, _ in judged(search, plan.best(search), task):
        yield row


def ensembles(task: Task, plan: Plan) -> Iterator[Row]:
    """How good composed networks are together, any of them, and how good the networks that gave their fragments are.

    An ensemble says what the mean of its members' scores says.

    Args:
        task: What they are judged on.
        plan: What is composed.

    Source: StitchNet, section 4.
    """
    search = plan.search(task)
    every = [(row, _scores(net, task)) for row, net in judged(search, plan.best(search), task)]
    labels = np.concatenate([labels for _, labels in batches(task.validation)])
    parents = [member for member in every if "parents_acc1" not in member[0]]
    for size in range(1, len(parents) + 1):
        for some in combinations(parents, size):
            yield {"kind": "parents", **_together(some, labels)}
    composed = every[len(parents) :]
    draw = random.Random(plan.seed)
    for size in _SIZES:
        if size > len(composed):
            break
        drawn = (
            [(member,) for member in composed] if size == 1 else [draw.sample(composed, size) for _ in range(_DRAWS)]
        )
        for members in drawn:
            yield {"kind": "composed", **_together(members, labels)}


def _scores(net: Net, task: Task) -> np.ndarray:
    """Scores of all classes that a network was fitted to, for the validation images `[N, classes]`."""
    assert net.classifier is not None
    return net.classifier.scores(net.outputs(task.validation)[0])


def _together(members: Any, labels: np.ndarray) -> Row:
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


def finetune(task: Task, plan: Plan) -> Iterator[Row]:
    """How good networks become when they are trained: the composed, and those that gave their fragments, all alike.

    Accuracy is by the networks' own classifiers.

    Args:
        task: What they are trained and judged on.
        plan: What is composed.

    Raises:
        InputError: If a network has fewer outputs than there are classes.

    Source: StitchNet, section 4.
    """
    search = plan.search(task)
    for number, composition in enumerate([*uncut(search.pool.fragments), *plan.best(search)]):
        net = search.build(composition)
        cost = net.get_macs_params()
        about = {"cfg_id": number, "stitch": net.name, "flops": cost["macs"], "params": cost["params"]}
        for epoch, accuracy in enumerate(fine_tune(net, task.train, task.validation, seed=plan.seed)):
            yield {**about, "epoch": epoch, "acc1": accuracy}
