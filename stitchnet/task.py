"""Evaluation of composed networks and their parents, the networks that their fragments come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from pydantic import FiniteFloat
from typing_extensions import TypedDict

from stitchkit.data.open_dataset import agreed_classes
from stitchkit.display import aligned, quantity
from stitchkit.engine.epoch_state import NotFinite
from stitchkit.errors import InputError
from stitchkit.measure.ledger import Row
from stitchkit.measure.pareto import is_anchor
from stitchnet.classifier import KINDS as FITTED
from stitchnet.composition import Composition, uncut
from stitchnet.data import Examples, batches, in_memory, open_split
from stitchnet.journal import Journal
from stitchnet.net import Net
from stitchnet.output_map import OutputMap
from stitchnet.search import Search


class JudgedNetwork(TypedDict):
    """The figures of a network, as a journal keeps them."""

    stitch: str
    flops: int
    params: int
    score: FiniteFloat
    acc1: FiniteFloat


@dataclass(frozen=True)
class CompositionTask:
    """Images to fit classifiers of a kind to the outputs of networks, or a map of outputs; and others to evaluate."""

    train: Examples
    validation: Examples
    classifier: str | OutputMap = "knn"
    classes: Sequence[str] = ()

    @classmethod
    def load(
        cls,
        data: str | Path,
        img_size: int,
        classifier: str = "knn",
        output_map: str | None = None,
        *,
        download: bool = False,
    ) -> CompositionTask:
        """A task from an image folder with `train/` and `validation/`, or from a data set by name."""
        if output_map is None and classifier not in FITTED:
            raise InputError(f"--classifier {classifier} needs --output-map; name the file")
        if output_map is not None and classifier in FITTED:
            raise InputError(f"--output-map is not for --classifier {classifier}; choose max, sum or argmax")
        train, validation = (open_split(data, split, img_size, download=download) for split in ("train", "validation"))
        classes = agreed_classes(train.dataset, validation.dataset)
        mapped = None if output_map is None else OutputMap.read(output_map, classifier, classes)
        return cls(in_memory(train), in_memory(validation), mapped or classifier, classes)

    @cached_property
    def digest(self) -> str:
        """A hash of all images and labels: files of the same names may hold others."""
        digest = hashlib.blake2b(digest_size=16)
        for split in (self.train, self.validation):
            for images, labels in batches(split):
                digest.update(images.contiguous().numpy().data)
                digest.update(labels.data)
        return digest.hexdigest()

    def accuracy(self, net: Net) -> float:
        """Give a network its classifier; the percentage of the validation images that it then classifies correctly."""
        if isinstance(self.classifier, OutputMap):
            net.classifier = self.classifier
        else:
            net.fit(self.train, classifier=self.classifier)
        return 100 * net.evaluate_dataset(self.validation)["accuracy"]


def judged(
    search: Search, compositions: Iterable[Composition], task: CompositionTask, journal: Journal | None = None, *,
    is_written: Callable[[int], bool] = lambda _: True,
) -> Iterator[tuple[Row, Net | None]]:  # fmt: skip
    """The uncut networks, then the composed ones, all evaluated alike; each with its row of the ledger.

    The row of a composed network also has `parents_acc1`, the mean of its parents. A composed network whose outputs are
    not finite is left out, and counted as skipped.

    Args:
        journal: Its rows are yielded without a network. A new row is added to it when the next one is requested, that
            is, after the caller has written all files of the row.
        is_written: Whether all files of the row of a `cfg_id` exist; if not, its network is evaluated again.
    """
    alone: dict[str, float] = {}
    number = 0
    for composition in (*uncut(search.pool.fragments), *compositions):
        net = None
        figures = kept = _recalled(composition, journal) if journal else None
        if figures is None or (figures and not is_written(number)):
            net = search.build(composition)
            figures = _judge(net, composition, task)
        row = {"cfg_id": number, **figures} if figures else {}
        if row:
            number += 1
            if composition.is_uncut:
                alone[composition.fragment.network] = row["acc1"]
            else:
                row["parents_acc1"] = fmean(alone[label] for label in {part.network for part in composition.fragments})
            yield row, net
        else:
            search.counts.skipped["its outputs are not finite"] += 1
        if journal is not None and figures != kept:
            journal.add(row, "row", composition.name)


def _recalled(composition: Composition, journal: Journal) -> Row | None:
    """A network's figures from the journal; empty if its outputs are not finite."""
    place = ("row", composition.name)
    if journal.find(dict[str, object], *place) == {} and not composition.is_uncut:
        return {}
    row = journal.find(JudgedNetwork, *place)
    return None if row is None else Row(**row)


def _judge(net: Net, composition: Composition, task: CompositionTask) -> Row:
    """The figures of a network; empty if its outputs are not finite."""
    try:
        accuracy = task.accuracy(net)
    except NotFinite as error:
        if composition.is_uncut:
            raise InputError(f"network '{composition.fragment.network}': {error}") from error
        return {}
    cost = net.get_macs_params()
    return {
        "stitch": net.name, "flops": cost["macs"], "params": cost["params"], "score": net.score, "acc1": accuracy
    }  # fmt: skip


def against_parents(rows: Iterable[Row]) -> str:
    """A table of the rows from `judged`, the parents marked with `*`, and a line on how many beat their parents."""
    head = ["", "cfg_id", "network", "FLOPs", "params", "score", "acc1", "parents", "gain"]
    body, composed = [], []
    for row in rows:
        parents = ["-", "-"]
        if "parents_acc1" in row:
            composed.append(row)
            parents = [f"{row['parents_acc1']:.2f}", f"{_gain(row):+.2f}"]
        mark = "*" if is_anchor(row) else ""
        figures = [quantity(row["flops"]), quantity(row["params"]), f"{row['score']:.3f}", f"{row['acc1']:.2f}"]
        body.append([mark, str(row["cfg_id"]), row["stitch"], *figures, *parents])
    return f"{aligned([head, *body], left={0, 2})}\n{_verdict(composed)}"


def _verdict(composed: list[Row]) -> str:
    better = [row for row in composed if _gain(row) > 0]
    if not better:
        return "no composed network beats the average of its parents"
    best = max(better, key=lambda row: row["acc1"])
    return (
        f"{len(better)} of {len(composed)} composed networks beat the average of their parents, without training; "
        f"the most accurate is {best['cfg_id']}: {best['acc1']:.2f} against {best['parents_acc1']:.2f} %"
    )


def _gain(row: Row) -> float:
    return float(row["acc1"] - row["parents_acc1"])
