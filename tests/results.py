"""Results that no run has measured: rows of a ledger, and files of a sweep's jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
import yaml
from torch import nn

from stitchkit.data.batches import Batch
from stitchkit.measure.answers import Accuracy
from stitchkit.measure.evaluate import Networks, evaluate
from stitchkit.measure.ledger import write_rows
from stitchkit.measure.per_image import PerImage
from stitchkit.measure.profile import Profiler
from stitchkit.measure.scores import AccuracyScore
from stitchkit.model.snnet import SNNet

_COSTS: WeakKeyDictionary[SNNet, list[dict[str, Any]]] = WeakKeyDictionary()
"""What the stitches of a network cost, which takes longest to find out."""


def answers_of(model: nn.Module, cfg_id: int | None, batches: Iterable[Batch]) -> PerImage:
    """What one stitch answers, or a plain model, as number 0, if `cfg_id` is None."""

    def run(images: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        return [(0, model(images)) if cfg_id is None else (cfg_id, model(images, cfg_id))]

    networks = Networks(model, [cfg_id or 0], run)
    return evaluate(networks, lambda _: batches, Accuracy(), device=torch.device("cpu"))


def pareto_like(model: SNNet, **changes: object) -> list[dict[str, Any]]:
    """Rows of an evaluation in which a costlier stitch is the better one."""
    if model not in _COSTS:
        profiler = Profiler(model)
        _COSTS[model] = [profiler.cost(cfg_id)._asdict() for cfg_id in model.space.ids]
    rows: list[dict[str, Any]] = [
        {"cfg_id": cfg_id, "stitch": model.space[cfg_id].name, **cost}
        for cfg_id, cost in zip(model.space.ids, _COSTS[model], strict=True)
    ]
    for place, row in enumerate(sorted(rows, key=lambda row: float(row["flops"]))):
        row["acc1"] = 50.0 + place
    return [row | changes for row in rows]


def write_evaluated(path: Path, right: Sequence[int], *, images: int) -> list[dict[str, Any]]:
    """Write a ledger with its hits; a network has all images right that a worse one has.

    Args:
        right: How many images each network has right. A later one has more FLOPs and fewer parameters.
    """
    bits = np.arange(images) < np.array(right)[:, None]
    labels = np.zeros((images, 1), np.int64)
    PerImage.of_all(range(len(right)), AccuracyScore(), bits[..., None], labels).write(path.with_suffix(".hits"))
    rows: list[dict[str, Any]] = [
        {"cfg_id": cfg_id, "flops": 100 + 20 * cfg_id, "params": 900 - 100 * cfg_id}
        | {"acc1": 100 * number / images, "knn": 50.0 + cfg_id, "images": images}
        for cfg_id, number in enumerate(right)
    ]
    write_rows(path, rows)
    return rows


def about(first: int, last: int, adapter: str, params: int = 100) -> dict[str, object]:
    """The metadata of a sweep's job."""
    return {
        "arch": "a-b", "first_deleted_block": first, "last_deleted_block": last, "num_downsamples": last - first,
        "adapter": adapter, "num_trainable_params": params,
    }  # fmt: skip


def write_result(
    folder: Path,
    name: str,
    about: Mapping[str, object],
    accuracies: Sequence[float],
    *,
    seed: int = 1,
    epochs: Iterable[int] | None = None,
    figure: str = "Accuracy",
) -> None:
    """Write what a finished job of a sweep leaves: its metadata, and an accuracy, or another figure, for each epoch."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "metadata.yml").write_text(yaml.safe_dump({**about, "num_classes": {"digits": 10}}))
    epochs = range(1, len(accuracies) + 1) if epochs is None else epochs
    rows = {"Epoch": epochs, "Step": 5, "LR": 0.1, "Loss": 1.0, f"Overall/digits/Test {figure}": accuracies}
    pd.DataFrame(rows).to_csv(place / f"result-{seed}.csv", index=False)
    (place / f"result-{seed}.pkl").touch()
