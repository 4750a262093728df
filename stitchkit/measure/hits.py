"""Hits: which images each network of a ledger classifies correctly, one bit each, in a file beside it.

They compare two networks much more precisely than two accuracies do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from stitchkit.measure.by_image import Beside, opened
from stitchkit.measure.formulas import NORMAL_95, Bits, Floats, accuracy_interval, share_on_front


@dataclass(frozen=True, eq=False)
class Hits(Beside):
    """Whether networks were right about images that they have `seen`, `[networks, images]`, in the order of the set.

    Label -1 is an image that does not count, which none has seen. The metric is the figure in a ledger: with "agree"
    the end anchor's answer is the right one, and all labels are 0.
    """

    cfg_ids: tuple[int, ...]
    right: Bits
    seen: Bits
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...] = ()
    metric: str = "acc1"
    kind: ClassVar[str] = "hits"

    def __post_init__(self) -> None:
        shape = (len(self.cfg_ids), len(self.labels))
        assert self.right.shape == self.seen.shape == shape, "a row for each network, a column for each image"
        assert len(self.names) in (0, len(self.labels)), "all images have names, or none"

    @property
    def num_images(self) -> int:
        """How many images the set has."""
        return len(self.labels)

    def of(self, cfg_ids: Sequence[int]) -> Hits:
        """Some of the networks, in this order."""
        places = self.places(cfg_ids)
        return replace(self, cfg_ids=tuple(cfg_ids), right=self.right[places], seen=self.seen[places])

    def _joined(self, other: Hits) -> Hits:
        right, seen = (np.concatenate(pair) for pair in ((self.right, other.right), (self.seen, other.seen)))
        labels = np.where(self.labels < 0, other.labels, self.labels)
        return replace(self, cfg_ids=self.cfg_ids + other.cfg_ids, right=right, seen=seen, labels=labels)

    def _other_truth(self, other: Hits) -> str:
        for number, (label, known) in enumerate(zip(other.labels.tolist(), self.labels.tolist(), strict=True)):
            if label != known and min(label, known) >= 0:
                return f"image {number:,} has label {label} in this evaluation, and {known} in the earlier one"
        return ""

    def intervals(self) -> dict[int, tuple[float, float]]:
        """The 95 % interval of the accuracy of each network that has seen an image, in percent."""
        counts = zip(self.cfg_ids, self.right.sum(axis=1).tolist(), self.seen.sum(axis=1).tolist(), strict=True)
        return {cfg_id: accuracy_interval(right, seen) for cfg_id, right, seen in counts if seen}

    def paired_intervals(self) -> tuple[Floats, Floats]:
        """The 95 % intervals of the differences of all pairs of networks, on the images that both have seen.

        They are much narrower than two accuracies suggest, because only images that one of the two gets right count.
        One image is added on either side, since networks that differ on few images would otherwise seem surely
        different or surely equal. The interval excludes 0 wherever McNemar's exact test finds a difference, and in few
        other cases: with 199 images or more, only if more than 13 differ and p < 0.066; with 91 or more, if p < 0.066;
        with 20 or more, if p < 0.079. With fewer, p may be 0.125 (4 to 0 of 4 images).

        Returns:
            Lowest and highest differences, of the row's network minus the column's, in points, `[networks, networks]`.

        Source: Bonett and Price, Adjusted Wald confidence interval for a difference of binomial proportions based on
            paired data, Journal of Educational and Behavioral Statistics 37, 2012.
        """
        right, seen = self.right.astype(np.float32), self.seen.astype(np.float32)  # exact up to 16 million images
        alone = (right @ seen.T - right @ right.T).astype(float)  # the row's network is right there, the column's not
        images = (seen @ seen.T).astype(float) + 2
        wins, losses = (alone + 1) / images, (alone.T + 1) / images
        difference = wins - losses
        half = NORMAL_95 * np.sqrt((wins + losses - difference**2) / images)
        return 100 * np.maximum(difference - half, -1), 100 * np.minimum(difference + half, 1)

    def difference(self, index: int, other_index: int) -> float:
        """The accuracy of the network at a place minus that of another, in points, on the images of both."""
        both = self.seen[index] & self.seen[other_index]
        return float(100 * (self.right[index][both].mean() - self.right[other_index][both].mean()))

    def shares_on_front(self, costs: Sequence[float]) -> list[float]:
        """P(on the front) of each network; all have seen all images that any has."""
        return share_on_front(self.right[:, self.seen.any(axis=0)], costs)

    def contradiction(self, index: int, figure: float) -> str:
        """What the hits say of the network at a place instead of an accuracy; empty if both say the same."""
        right, seen = int(self.right[index].sum()), int(self.seen[index].sum())
        return f"{right:,} of {seen:,} images right" if abs(right - figure / 100 * seen) > 0.5 else ""  # half an image


def hits_file(ledger: str | Path) -> Path:
    """The file beside a ledger."""
    return Path(ledger).with_suffix(".hits")


def write_hits(path: Path, hits: Hits) -> None:
    """Write hits, which replace earlier ones only when they are complete."""
    labels = hits.labels.astype(np.int32)
    about = {} if hits.metric == "acc1" else {"metric": hits.metric}
    hits.write(path, {"right": _packed(hits.right), "seen": _packed(hits.seen), "labels": labels}, **about)


def _packed(bits: Bits) -> npt.NDArray[np.uint8]:
    """Eight bits in a byte, row by row: safetensors would write the memory of columns as if they were rows."""
    return np.ascontiguousarray(np.packbits(bits, axis=1))


def read_hits(path: str | Path) -> Hits:
    """The hits in a file."""
    what, bits = "says what each network answers to each image", ("right", "seen")
    with opened(path, Hits, what, (*bits, "labels")) as (cfg_ids, about, arrays, names):
        labels = arrays["labels"].astype(np.int64)
        if any(arrays[name].shape[1] != -(-len(labels) // 8) for name in bits):  # NumPy makes up missing bytes
            raise ValueError("it is of another format")
        right, seen = (np.unpackbits(arrays[name], axis=1, count=len(labels)).astype(bool) for name in bits)
        metric = about.get("metric", "acc1")
        if metric not in ("acc1", "agree"):
            raise ValueError("it is of another format")
        return Hits(cfg_ids, right & seen, seen, labels, names, metric)


def hits_beside(ledger: str | Path) -> Hits | None:
    """The hits of a ledger, or None if it has none, as published ones."""
    path = hits_file(ledger)
    return read_hits(path) if path.exists() else None
