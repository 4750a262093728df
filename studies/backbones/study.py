"""Stitching without labels in several ways, over three seeds: trains what is missing, then writes the table.

Run it from the repository, after `make demo-backbone` has written the images:
`python -m studies.backbones.study`. Remove outputs/glyphs_study after a change of the code: finished runs are
known by their names.
"""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from stitchkit.measure.ledger import read_rows
from stitchkit.measure.pareto import is_anchor

HERE = Path(__file__).parent
DATA, OUTPUT, CONFIG = Path("data/glyphs"), Path("outputs/glyphs_study"), Path("configs/glyphs_convnext.json")
SEEDS = (0, 1, 2)
FRESH = (3, 4, 5)
"""Seeds for the demo alone: its settings were chosen while such figures were looked at."""
EPOCHS = {"s": 12, "b": 25}
WAYS: dict[str, tuple[str, list[str]]] = {
    "demo": ("mlp", []),
    "squared error": ("mlp", ["--feature-distance", "mse"]),
    "linear layers": ("linear", []),
    "layers not fitted first": ("mlp", ["--no-ls-init"]),
    "learning rate 0.005": ("mlp", ["--lr", "5e-3"]),
    "1 epoch": ("mlp", ["--epochs", "1", "--warmup-epochs", "0"]),
    "10 epochs": ("mlp", ["--epochs", "10"]),
    "anchors trained too": ("mlp", ["--preserve", "none", "--lr", "2e-3"]),
}
"""What differs from the demo: the kind of the stitching layers, and flags."""


def main() -> None:
    """Train and judge every row that has no result yet, two at a time, then write the table."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    seeds = (*SEEDS, *FRESH)
    with ThreadPoolExecutor(2) as pool:
        for name in pool.map(lambda row: train_anchor(*row), [(label, seed) for seed in seeds for label in EPOCHS]):
            print(name, flush=True)
        for name in pool.map(lambda row: train_and_judge(*row), rows()):
            print(name, flush=True)
    write_table()


def rows() -> list[tuple[str, int]]:
    """The way and the seed of each row."""
    return [(way, seed) for way in WAYS for seed in (*SEEDS, *(FRESH if way == "demo" else ()))]


def stitchkit(*flags: str | Path) -> None:
    """Run a command of stitchkit in a process of its own."""
    command = [sys.executable, "-m", "stitchkit", *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (OUTPUT / "log.txt").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)


def train_anchor(label: str, seed: int) -> str:
    """Train an anchor as the demo does, in one process, with another seed."""
    name, kwargs = f"{label}-{seed}", anchors()[label]["kwargs"]
    assert isinstance(kwargs, dict), "as in the file"
    if not weights_of(label, seed).exists():
        shape = [f"{key}={json.dumps(kwargs[key]).replace(' ', '')}" for key in ("depths", "dims")]
        flags = ["--img-size", "32", "--epochs", str(EPOCHS[label]), "-b", "64", "--model-kwargs", *shape]
        flags += ["--seed", str(seed), "--experiment", name, "--output", str(OUTPUT), "--resume", "auto"]
        stitchkit("train", DATA, "-c", "configs/digits_anchor.yaml", "--model", "convnext_atto", *flags)
        weights_of(label, seed).unlink(missing_ok=True)  # a link to a run that was removed
        weights_of(label, seed).symlink_to(f"{name}/last.pth.tar")
    return name


def weights_of(label: str, seed: int) -> Path:
    """The weights of an anchor; they are there when it is trained."""
    return OUTPUT / f"{label}-{seed}.pth.tar"


def anchors() -> dict[str, dict[str, object]]:
    """The anchors of the demo's configuration, by label."""
    return {anchor["label"]: anchor for anchor in json.loads(CONFIG.read_text())["anchors"]}


def train_and_judge(way: str, seed: int) -> str:
    """Train the stitches of one row without labels, and judge each with them."""
    layer, flags = WAYS[way]
    name = ledger_of(way, seed).name.removesuffix(".txt")
    folder = OUTPUT / name
    if not ledger_of(way, seed).exists():
        content = json.loads(CONFIG.read_text()) | {"layer": layer}
        content["anchors"] = [
            {**anchor, "checkpoint": str(weights_of(label, seed))} for label, anchor in anchors().items()
        ]
        config = OUTPUT / f"{name}.json"
        config.write_text(json.dumps(content))
        place: list[str | Path] = ["--seed", str(seed), "--experiment", name, "--output", OUTPUT, "-b", "64"]
        stitchkit("train", DATA / "unlabelled", "--stitch-config", config, *flags, *place, "--resume", "auto")
        stitchkit("train", DATA, "-c", folder / "args.yaml", "--eval", "--resume", folder / "last.pth.tar")
        (folder / "stitches_res.txt").rename(ledger_of(way, seed))
    return name


def ledger_of(way: str, seed: int) -> Path:
    """The ledger of a row, which is there when all its stitches are judged."""
    return OUTPUT / f"{way.replace(' ', '-')}-{seed}.txt"


def above(ledger: Sequence[Mapping[str, float]], metric: str) -> list[float]:
    """Points of each stitch above the straight line between the two anchors, over the logarithm of FLOPs."""
    small, large = ledger[:2]
    steps = [math.log(row["flops"] / small["flops"]) / math.log(large["flops"] / small["flops"]) for row in ledger]
    return [
        row[metric] - small[metric] - step * (large[metric] - small[metric])
        for row, step in zip(ledger[2:], steps[2:], strict=True)
    ]


def write_table() -> None:
    """Write `table.csv`: a row for each way and seed."""
    with (HERE / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        ends = [f"{metric}_{label}" for metric in ("knn", "linear") for label in EPOCHS]
        kinds = [f"{metric}_{what}" for metric in ("knn", "linear") for what in ("above", "mean_points")]
        writer.writerow(["way", "seed", "stitches", *kinds, "mean_cosine", *ends])
        for way, seed in rows():
            ledger = read_rows(ledger_of(way, seed))
            assert [is_anchor(row) for row in ledger[:3]] == [True, True, False], "anchors come first"
            points = {metric: np.array(above(ledger, metric)) for metric in ("knn", "linear")}
            found = [figure for one in points.values() for figure in ((one > 0).sum(), f"{one.mean():.2f}")]
            cosine = np.mean([row["cosine"] for row in ledger[2:]])
            edges = [f"{ledger[number][metric]:.2f}" for metric in points for number in (0, 1)]
            writer.writerow([way, seed, len(ledger) - 2, *found, f"{cosine:.2f}", *edges])


if __name__ == "__main__":
    main()
