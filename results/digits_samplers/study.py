"""Samplers and ways of keeping the anchors at the same training FLOPs: trains what is missing, then writes the table.

Run it from the repository, after `make demo` has trained the anchors: `python results/digits_samplers/study.py`.
"""

from __future__ import annotations

import csv
import itertools
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from timm.data import create_loader
from torch.utils.flop_counter import FlopCounterMode

import stitchkit
from stitchkit.data.folders import open_images
from stitchkit.measure.profile import Profiler
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.training.preserve import Replay, freeze
from stitchkit.training.samplers import create_sampler
from stitchkit.training.task import create_task

HERE = Path(__file__).parent
DATA, CONFIG, OUTPUT = "data/digits", "configs/digits_vit.json", Path("outputs/digits_samplers")
SAMPLERS = ("uniform", "cost_bins", "sandwich", "best_of")
WAYS = ("none", "frozen", "lora", "replay")
SEEDS = (0, 1, 2)
EPOCHS = 60
"""Of the reference, uniform sampling of anchors that nothing keeps; all others get its training FLOPs."""
BATCH = 32
DRAWS = 150
"""Steps whose FLOPs are counted for the mean of a sampler."""
BUDGETS = 20
RESAMPLES = 2000


def main() -> None:
    """Train every row that has no result yet, two at a time, then write the tables."""
    logging.basicConfig(level=logging.WARNING)
    cells = list(itertools.product(SAMPLERS, WAYS))
    images = len(open_images(Path(DATA, "train")))
    steps = images // BATCH
    flops = {cell: step_flops(*cell) for cell in cells}
    epochs = {cell: max(1, round(EPOCHS * flops[cells[0]] / flops[cell])) for cell in cells}
    rows = [(*cell, seed, epochs[cell]) for seed in SEEDS for cell in cells]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name in pool.imap_unordered(train_and_judge, rows):
            print(name, flush=True)
    write_tables(cells, epochs, {cell: epochs[cell] * steps * flops[cell] for cell in cells})


def settings_of(sampler: str, way: str) -> dict[str, object]:
    """The settings of a cell, beside those of the configuration."""
    return {"sampler": sampler, "preserve": way}


def step_flops(sampler: str, way: str) -> float:
    """Mean FLOPs, forward and backward, that a training step spends on an image, by torch's count."""
    config = StitchConfig.load(CONFIG)
    recipe = make_recipe({**config.recipe, **settings_of(sampler, way), "smoothing": 0.0})
    torch.manual_seed(0)
    model = stitchkit.create_snnet(config.with_updates(recipe.stitch), checkpoints=False).train()
    freeze(model, recipe.stitch)
    profiler = Profiler(model)
    found = create_sampler(model.trainable_stitches(), lambda cfg_id: profiler.cost(cfg_id).flops, recipe.stitch, 0)
    replay = Replay(model) if way == "replay" else None
    task = create_task(
        model, recipe, torch.device("cpu"), sides=model.input_size[1:], mean=(0.5,) * 3, std=(0.5,) * 3, sampler=found,
        replay=replay,
    )  # fmt: skip
    task.train()
    x, labels, known = torch.randn(2, *model.input_size), torch.tensor([0, 1]), {}
    counts = []
    for step in range(DRAWS):
        drawn = task.draw(step, 0)
        if drawn not in known:
            with FlopCounterMode(display=False) as counter:
                task(x, labels, *task.choose(drawn, x, labels))["loss"].backward()
            known[drawn] = counter.get_total_flops() / len(x)
        counts.append(known[drawn])
    return float(np.mean(counts))


def train_and_judge(row: tuple[str, str, int, int]) -> str:
    """Train one row and keep which validation images each of its stitches gets right."""
    sampler, way, seed, epochs = row
    torch.set_num_threads(1)
    name = f"{sampler}-{way}-{seed}"
    hits = OUTPUT / f"{name}.npy"
    if hits.exists():
        return name
    given = settings_of(sampler, way) | {"seed": seed, "epochs": epochs, "val_interval": epochs}
    run = stitchkit.train(
        DATA, stitch_config=CONFIG, output=str(OUTPUT), experiment=name, resume="auto", batch_size=BATCH, **given
    )
    config = StitchConfig.load(CONFIG).with_updates(make_recipe(given).stitch)
    model = stitchkit.create_snnet(config, checkpoints=False).eval()
    stitchkit.load_checkpoint(model, run.checkpoint)
    np.save(hits, judge(model))
    return name


@torch.inference_mode()
def judge(model: stitchkit.SNNet) -> np.ndarray:
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


def best_within(hits: np.ndarray, flops: np.ndarray) -> np.ndarray:
    """Accuracy in percent of the best stitch within each of `BUDGETS` budgets, evenly spaced in the logarithm.

    Args:
        hits: `[..., stitches, images]`.
        flops: Of each stitch.
    """
    budgets = np.geomspace(flops.min(), flops.max(), BUDGETS)
    budgets[-1] = flops.max()
    accuracy = 100 * hits.mean(-1)
    return np.stack([accuracy[..., flops <= budget].max(-1) for budget in budgets], -1)


def write_tables(
    cells: Sequence[tuple[str, str]], epochs: dict[tuple[str, str], int], spent: dict[tuple[str, str], float]
) -> None:
    """Write `table.csv`: means over seeds, and 95 % intervals of differences to the first cell."""
    model = stitchkit.create_snnet(CONFIG).eval()  # the anchors as they were
    profiler = Profiler(model)
    flops = np.array([profiler.cost(cfg_id).flops for cfg_id in model.space.ids])
    alone = judge(model)[: model.space.num_anchors]
    hits = {cell: np.stack([np.load(OUTPUT / f"{'-'.join(cell)}-{seed}.npy") for seed in SEEDS]) for cell in cells}
    rng = np.random.default_rng(0)
    means = {cell: best_within(found, flops).mean() for cell, found in hits.items()}
    resampled: dict[tuple[str, str], list[float]] = {cell: [] for cell in cells}
    for _ in range(RESAMPLES):  # the same seeds and images for all cells: paired
        seeds, images = rng.integers(len(SEEDS), size=len(SEEDS)), rng.integers(alone.shape[1], size=alone.shape[1])
        for cell, found in hits.items():
            resampled[cell].append(best_within(found[seeds][..., images], flops).mean())
    reference = cells[0]
    with (HERE / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        labels = list(model.views)
        head = ["sampler", "preserve", "epochs", "training_gflops_per_image", "mean_acc1", "seed_std", "difference"]
        writer.writerow([*head, "low", "high", *(f"drop_{label}" for label in labels)])
        for cell in cells:
            low, high = np.percentile(np.subtract(resampled[cell], resampled[reference]), [2.5, 97.5])
            drops = 100 * (alone.mean(1) - hits[cell][:, : len(labels)].mean((0, 2)))
            figures = [means[cell], best_within(hits[cell], flops).mean(-1).std(ddof=1), means[cell] - means[reference]]
            rounded = [f"{value:.2f}" for value in (*figures, low, high, *drops)]
            writer.writerow([*cell, epochs[cell], f"{spent[cell] / 1e9:.3f}", *rounded])


if __name__ == "__main__":
    main()
