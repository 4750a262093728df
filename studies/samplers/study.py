"""Samplers and ways of keeping the anchors at the same training FLOPs: trains what is missing, then writes the table.

Run it from the repository, after `make demo` has trained the anchors: `python -m studies.samplers.study`.
Remove outputs/digits_samplers after a change of the code: finished runs are known by their names.
"""

from __future__ import annotations

import csv
import itertools
import json
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from timm.data import create_loader
from torch.utils.flop_counter import FlopCounterMode

import stitchkit
from stitchkit.data.folders import open_images
from stitchkit.measure.profile import Profiler
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.training.network import sampler_of
from stitchkit.training.preserve import freeze
from stitchkit.training.task import create_task
from studies.samplers.best_of import BestOfTask
from studies.samplers.plug_in import plugged_in
from studies.samplers.replay import Replay

Hits = NDArray[np.bool_]
Figures = NDArray[np.float64]

HERE = Path(__file__).parent
DATA, OUTPUT = "data/digits", Path("outputs/digits_samplers")
SAMPLERS = ("uniform", "cost_bins", "sandwich", "best_of")
WAYS = ("none", "frozen", "lora", "replay")
SEEDS = (0, 1, 2)
FRESH = (3, 4, 5, 6, 7)
"""Seeds for the default alone, against the first row: the rule of its bins was changed after the others were seen."""
DEFAULT = ("cost_bins", "none")
EPOCHS = 60
"""Of the reference, uniform sampling of anchors that nothing keeps; all others get its training FLOPs."""
WARM_UP = 1 / 30
"""Share of the epochs, as in the configuration."""
BATCH = 32
DRAWS = 2000
"""Steps whose FLOPs are counted for the mean of a sampler."""
RANK = 2
"""Of the updates of `lora`; the narrowest anchor has 8 channels."""
BUDGETS = 20


def main() -> None:
    """Train every row that has no result yet, two at a time, then write the table."""
    logging.basicConfig(level=logging.WARNING)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for way in WAYS:
        write_config(way)
    cells = list(itertools.product(SAMPLERS, WAYS))
    flops = {cell: step_flops(*cell) for cell in cells}
    epochs = {cell: max(1, round(EPOCHS * flops[cells[0]] / flops[cell])) for cell in cells}
    rows = [(*cell, seed, epochs[cell]) for seed in SEEDS for cell in cells]
    rows += [(*cell, seed, epochs[cell]) for seed in FRESH for cell in (cells[0], DEFAULT)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name in pool.imap_unordered(train_and_judge, rows):
            print(name, flush=True)
    images = len(open_images(Path(DATA, "train"))) // BATCH * BATCH
    write_table(cells, epochs, {cell: epochs[cell] * images * flops[cell] for cell in cells})
    write_fresh(cells[0], epochs)


def write_config(way: str) -> None:
    """The demo's configuration, with updates of a rank that fits its anchors where they are trained."""
    content = json.loads(Path("configs/digits_vit.json").read_text())
    rank = {"anchor_lora_r": RANK} if way == "lora" else {}
    config_of(way).write_text(json.dumps({**content, **rank}))


def config_of(way: str) -> Path:
    """The configuration of a way to keep the anchors."""
    return OUTPUT / f"{way}.json"


def preserved(way: str) -> str:
    """The `--preserve` of a way to keep the anchors; the task replays them."""
    return "none" if way == "replay" else way


def step_flops(sampler: str, way: str) -> float:
    """Mean FLOPs, forward and backward, that a training step spends on an image, by torch's count."""
    config = StitchConfig.load(config_of(way))
    recipe = make_recipe(
        {**config.recipe, "sampler": sampler, "preserve": preserved(way), "stitch_config": str(config_of(way))}
    )
    torch.manual_seed(0)
    model = stitchkit.create_snnet(config.with_updates(recipe), checkpoints=False).train()
    freeze(model, recipe.stitch)
    with plugged_in(sampler, Replay(model, recipe.stitch) if way == "replay" else None):
        task = create_task(
            model, recipe, torch.device("cpu"), sides=model.input_size[1:], mean=(0.5,) * 3, std=(0.5,) * 3,
            sampler=sampler_of(model, recipe),
        )  # fmt: skip
    task.train()
    x, labels = torch.randn(BATCH, *model.input_size), torch.arange(BATCH) % 10

    @cache
    def training(route: int) -> int:
        with FlopCounterMode(display=False) as counter:
            task(x, labels, route)["loss"].backward()
        return int(counter.get_total_flops())

    @cache
    def choosing(drawn: tuple[int, ...]) -> int:
        with FlopCounterMode(display=False) as counter:
            task.best(drawn, x, labels)
        return int(counter.get_total_flops())

    total = 0.0
    for step in range(DRAWS):
        drawn = task.draw(step, 0)
        trained: float = sum(map(training, drawn))
        if isinstance(task, BestOfTask):  # it trains one of those that it compares, whose cost their mean estimates
            trained = trained / len(drawn) + choosing(tuple(sorted(drawn)))
        total += trained
    return total / DRAWS / BATCH


def train_and_judge(row: tuple[str, str, int, int]) -> str:
    """Train one row and keep which validation images each of its stitches gets right."""
    sampler, way, seed, epochs = row
    torch.set_num_threads(1)
    hits = hits_of(*row)
    if hits.exists():
        return hits.stem
    # From the configuration, whose anchors no training has changed, also when a run resumes.
    config, replay = StitchConfig.load(config_of(way)), None
    if way == "replay":
        replay = Replay(stitchkit.create_snnet(config), make_recipe(config.recipe).stitch)
    with plugged_in(sampler, replay):
        run = stitchkit.train(
            DATA, stitch_config=str(config_of(way)), output=str(OUTPUT), experiment=hits.stem, resume="auto", seed=seed,
            sampler=sampler, preserve=preserved(way), epochs=epochs, warmup_epochs=epochs * WARM_UP, batch_size=BATCH,
            val_interval=epochs,
        )  # fmt: skip
    config = config.with_updates(make_recipe({"preserve": preserved(way)}))
    model = stitchkit.create_snnet(config, checkpoints=False).eval()
    stitchkit.load_checkpoint(model, run.checkpoint)
    np.save(hits, judge(model))
    return hits.stem


def hits_of(sampler: str, way: str, seed: int, epochs: int) -> Path:
    """The file of the images that the stitches of a row get right."""
    return OUTPUT / f"{sampler}-{way}-{epochs}-epochs-{seed}.npy"


@torch.inference_mode()
def judge(model: stitchkit.SNNet) -> Hits:
    """Which validation images each stitch gets right `[stitches, images]`; the stitches in the order of the space."""
    parts = []
    for images, labels in validation(model):
        logits = model.forward_all(images)
        parts.append(np.stack([(logits[cfg_id].argmax(1) == labels).numpy() for cfg_id in model.space.ids]))
    return np.concatenate(parts, axis=1)


def validation(model: stitchkit.SNNet) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The validation images, prepared as in training."""
    dataset = open_images(Path(DATA, "validation"))
    how = {key: model.pretrained_cfg[key] for key in ("mean", "std", "interpolation", "crop_pct")}
    return iter(
        create_loader(
            dataset, model.input_size, batch_size=100, use_prefetcher=False, num_workers=0, persistent_workers=False,
            **how,
        )
    )  # fmt: skip


def best_within(hits: Hits, flops: Figures) -> Figures:
    """Accuracy in percent of the best stitch within each of `BUDGETS` budgets, evenly spaced in the logarithm.

    Stitches are chosen on one half of the images and judged on the other, then the reverse.

    Args:
        hits: Of one run, `[stitches, images]`.
        flops: Of each stitch.
    """
    halves = [hits[:, start::2].mean(1) for start in (0, 1)]
    found = []
    for budget in np.geomspace(flops.min(), flops.max(), BUDGETS):
        within = flops <= budget * (1 + 1e-9)
        found.append(np.mean([judged[within][chosen[within].argmax()] for chosen, judged in (halves, halves[::-1])]))
    return 100 * np.array(found)


def route_flops(model: stitchkit.SNNet) -> Figures:
    """FLOPs of each stitch, as fvcore counts them, in the order of the space."""
    cost = Profiler(model).cost
    return np.array([cost(cfg_id).flops for cfg_id in model.space.ids], dtype=np.float64)


def with_interval(values: Figures) -> tuple[float, float]:
    """The mean over seeds, and half of its 95 % interval by Student's t."""
    deviation = values.std(ddof=1) / len(values) ** 0.5
    return values.mean(), stats.t.ppf(0.975, len(values) - 1) * deviation


def write_table(
    cells: Sequence[tuple[str, str]], epochs: dict[tuple[str, str], int], spent: dict[tuple[str, str], float]
) -> None:
    """Write `table.csv`: means over seeds; differences to the first cell are paired by seed."""
    model = stitchkit.create_snnet(config_of("none")).eval()  # the anchors as they were
    flops, labels = route_flops(model), list(model.views)
    alone = 100 * judge(model)[: len(labels)].mean(1)
    hits = {cell: [np.load(hits_of(*cell, seed, epochs[cell])) for seed in SEEDS] for cell in cells}
    means = {cell: np.array([best_within(run, flops).mean() for run in runs]) for cell, runs in hits.items()}
    with (HERE / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ["sampler", "preserve", "epochs", "training_gflops", "mean_acc1", "difference", "half_interval"]
        writer.writerow([*head, *(f"drop_{label}{what}" for label in labels for what in ("", "_half_interval"))])
        for cell in cells:
            drops = alone - 100 * np.stack([run[: len(labels)].mean(1) for run in hits[cell]])
            figures = [means[cell].mean(), *with_interval(means[cell] - means[cells[0]])]
            figures += [figure for drop in drops.T for figure in with_interval(drop)]
            writer.writerow([*cell, epochs[cell], f"{spent[cell] / 1e9:.0f}", *(f"{value:.2f}" for value in figures)])


def write_fresh(first: tuple[str, str], epochs: dict[tuple[str, str], int]) -> None:
    """Write `fresh.csv`: the mean accuracies of the first row and the default for each fresh seed."""
    flops = route_flops(stitchkit.create_snnet(config_of("none")))
    means = [
        [best_within(np.load(hits_of(*cell, seed, epochs[cell])), flops).mean() for cell in (first, DEFAULT)]
        for seed in FRESH
    ]
    mean, half = with_interval(np.array([default - reference for reference, default in means]))
    print(f"fresh seeds: {DEFAULT[0]} against {first[0]} {mean:.2f} ± {half:.2f}")
    with (HERE / "fresh.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", first[0], DEFAULT[0]])
        writer.writerows([seed, *(f"{value:.2f}" for value in row)] for seed, row in zip(FRESH, means, strict=True))


if __name__ == "__main__":
    main()
