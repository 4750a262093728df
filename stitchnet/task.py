"""What composed networks are judged on, beside the networks that gave their fragments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from stitchkit.data.sources import agreed_classes
from stitchkit.display import aligned, quantity
from stitchkit.errors import InputError
from stitchkit.measure.ledger import Row
from stitchkit.measure.pareto import is_anchor
from stitchnet.classifier import NotFiniteError
from stitchnet.composition import Composition, uncut
from stitchnet.data import Batches, in_memory, open_split
from stitchnet.net import Net
from stitchnet.search import Search


@dataclass(frozen=True)
class CompositionTask:
    """Images with labels, and what is fitted to the outputs of networks for them.

    Args:
        train: What classifiers are fitted to.
        validation: What they are judged on.
        classifier: `knn` or `linear`.
    """

    train: Batches
    validation: Batches
    classifier: str = "knn"

    @classmethod
    def load(cls, data: str | Path, img_size: int, classifier: str = "knn") -> CompositionTask:
        """A task from a data set.

        Args:
            data: Image folder with `train/` and `validation/`, or the name of a data set.
            img_size: Side of the images.
            classifier: What is fitted.

        Raises:
            InputError: If a split is missing or holds no images, or their classes differ.
        """
        train, validation = (open_split(data, split, img_size) for split in ("train", "validation"))
        agreed_classes(train.dataset, validation.dataset)
        return cls(in_memory(train), in_memory(validation), classifier)

    def accuracy(self, net: Net) -> float:
        """The part of the validation images that a network classifies right, in percent, once it is fitted."""
        return 100 * net.fit(self.train, classifier=self.classifier).evaluate_dataset(self.validation)["accuracy"]


def judged(search: Search, compositions: Iterable[Composition], task: CompositionTask) -> Iterator[tuple[Row, Net]]:
    """The networks as they are, then the composed ones, all judged alike; each with its row of the ledger.

    The row of a composed network has `parents_acc1` besides, the mean of the networks that gave its fragments. A
    composed network whose outputs are not finite is left out, and counted as skipped.

    Args:
        search: What found the compositions.
        compositions: In the order of the rows.
        task: What they are judged on.
    """
    alone: dict[str, float] = {}
    number = 0
    for composition in (*uncut(search.pool.fragments), *compositions):
        net = search.build(composition)
        try:
            accuracy = task.accuracy(net)
        except NotFiniteError as error:
            if composition.is_uncut:
                raise InputError(f"network '{composition.fragment.network}': {error}") from error
            search.counts.skipped["its outputs are not finite"] += 1
            continue
        cost = net.get_macs_params()
        row: Row = {"cfg_id": number, "stitch": net.name, "flops": cost["macs"], "params": cost["params"]}
        row |= {"score": net.score, "acc1": accuracy}
        if composition.is_uncut:
            alone[composition.fragment.network] = accuracy
        else:
            row["parents_acc1"] = fmean(alone[network] for network in {fragment.network for fragment in net.path})
        yield row, net
        number += 1


def against_parents(rows: Iterable[Row]) -> str:
    """A table of networks, the parents marked with `*`, and one line on whether any composed one beats its parents.

    Args:
        rows: As `judged` gives them.
    """
    rows = list(rows)
    head = ["", "cfg_id", "network", "FLOPs", "params", "score", "acc1", "parents", "gain"]
    body = []
    for row in rows:
        parents = [f"{row['parents_acc1']:.2f}", f"{_gain(row):+.2f}"] if "parents_acc1" in row else ["-", "-"]
        cost = [quantity(row["flops"]), quantity(row["params"])]
        mark = "*" if is_anchor(row) else ""
        figures = [f"{row['score']:.3f}", f"{row['acc1']:.2f}"]
        body.append([mark, str(row["cfg_id"]), row["stitch"], *cost, *figures, *parents])
    return f"{aligned([head, *body], left={0, 2})}\n{_verdict([row for row in rows if 'parents_acc1' in row])}"


def _verdict(composed: list[Row]) -> str:
    better = [row for row in composed if _gain(row) > 0]
    if not better:
        return f"none of {len(composed)} composed networks beats the average of its parents"
    best = max(better, key=lambda row: row["acc1"])
    return (
        f"{len(better)} of {len(composed)} composed networks beat the average of their parents, without training; "
        f"the most accurate is {best['cfg_id']}: {best['acc1']:.2f} against {best['parents_acc1']:.2f} %"
    )


def _gain(row: Row) -> float:
    return float(row["acc1"] - row["parents_acc1"])
