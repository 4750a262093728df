"""What each network of a ledger gives on each image of a dense task, in a file beside it.

All networks judge the same images, so that the sums of single images tell two networks apart far better than two
figures do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from stitchkit.measure.by_image import Beside, opened
from stitchkit.measure.dense_score import DenseScore, about, score_of
from stitchkit.measure.formulas import Bits, Floats

_MOST = np.iinfo(np.uint16).max


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Rows of numbers that are mostly 0: of 150 classes, an image has about ten.

    Args:
        counts: How many numbers of each row are not 0, `[rows]`.
        columns: Where they are, row by row, `[numbers]`.
        values: What they are, `[numbers]`.
    """

    counts: npt.NDArray[np.uint16]
    columns: npt.NDArray[np.uint16]
    values: npt.NDArray[Any]

    @classmethod
    def of(cls, rows: npt.NDArray[Any], kind: type[np.generic]) -> SparseRows:
        """Sparse rows of a table `[rows, columns]`, with values of a kind."""
        places, columns = rows.nonzero()
        values = rows[places, columns].astype(kind)
        assert rows.shape[1] <= _MOST, "columns fit"
        assert np.array_equal(values, rows[places, columns]), "numbers fit"
        counts = np.bincount(places, minlength=len(rows))
        return cls(counts.astype(np.uint16), columns.astype(np.uint16), values)

    def dense(self, columns: int) -> Floats:
        """The rows `[rows, columns]`."""
        rows = np.zeros((len(self.counts), columns))
        rows[np.repeat(np.arange(len(rows)), self.counts), self.columns] = self.values
        return rows

    @classmethod
    def joined(cls, parts: Sequence[SparseRows]) -> SparseRows:
        """The rows of all parts, one part after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in _PARTS))


_PARTS = ("counts", "columns", "values")


@dataclass(frozen=True, eq=False)
class ImageSums(Beside):
    """The sums of networks on the images of a set, in its order.

    Args:
        rows: For each network the sums of every image that depend on it, `[images, score.own]`; an image without any
            is one that it has not seen.
        truth: The sums that do not, `[images, score.truth]`; zeros are an image that does not count, as it could not be
            read, or has no known pixel.
        names: The names of the images; empty if the data set has none.
    """

    cfg_ids: tuple[int, ...]
    score: DenseScore
    rows: tuple[SparseRows, ...]
    truth: npt.NDArray[np.int32]
    names: tuple[str, ...] = ()
    kind: ClassVar[str] = "sums"

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.cfg_ids), "rows for each network"
        assert self.truth.shape == (len(self.truth), self.score.truth), "the truth of each image"
        assert all(len(rows.counts) == len(self.truth) for rows in self.rows), "a row for each image"
        assert len(self.names) in (0, len(self.truth)), "all images have names, or none"

    @classmethod
    def from_sums(
        cls, cfg_ids: Sequence[int], score: DenseScore, sums: npt.NDArray[Any], names: Sequence[str] = ()
    ) -> ImageSums:
        """The sums of some networks on some images."""
        own, truth = sums[..., : score.own], sums[..., score.own :]
        assert (truth == truth[:1]).all(), "all networks judge the same images"
        rows = tuple(SparseRows.of(each, score.kind) for each in own)
        return cls(tuple(cfg_ids), score, rows, truth[0].astype(np.int32), tuple(names))

    @classmethod
    def joined(cls, parts: Sequence[ImageSums]) -> ImageSums:
        """The sums of the same networks on the images of all parts, one part after the other."""
        first = parts[0]
        assert all((part.cfg_ids, part.score) == (first.cfg_ids, first.score) for part in parts), "the same networks"
        rows = tuple(SparseRows.joined(each) for each in zip(*(part.rows for part in parts), strict=True))
        names = tuple(name for part in parts for name in part.names)
        return replace(first, rows=rows, truth=np.concatenate([part.truth for part in parts]), names=names)

    def in_order(self, numbers: Sequence[int], names: Sequence[str]) -> ImageSums:
        """The same, of images with these numbers in a set, in the order of the set, with the names of its images."""
        order = np.argsort(numbers)
        rows = tuple(SparseRows.of(each.dense(self.score.own)[order], self.score.kind) for each in self.rows)
        return replace(self, rows=rows, truth=self.truth[order], names=tuple(names))

    @property
    def num_images(self) -> int:
        """How many images the set has."""
        return len(self.truth)

    @property
    def seen(self) -> Bits:
        """Whether a network has judged an image that counts, `[networks, images]`."""
        judged = np.array([rows.counts > 0 for rows in self.rows], bool).reshape(len(self.rows), len(self.truth))
        return judged & self.truth.any(axis=1)

    def sums_of(self, cfg_id: int) -> Floats:
        """The sums of a network on each image, `[images, own + truth]`; zeros for an image that it has not seen."""
        rows = self.rows[self.places([cfg_id])[0]]
        return np.hstack([rows.dense(self.score.own), self.truth * (rows.counts > 0)[:, None]])

    def figures(self, cfg_id: int) -> dict[str, float]:
        """The figures of a network for its row in a ledger, and on how many images it was judged."""
        found = {name: float(value) for name, value in self.score.figures(self.sums_of(cfg_id).sum(axis=0)).items()}
        return found | {"images": int(self.of([cfg_id]).seen.sum())}

    def of(self, cfg_ids: Sequence[int]) -> ImageSums:
        """Some of the networks, in this order."""
        return replace(self, cfg_ids=tuple(cfg_ids), rows=tuple(self.rows[place] for place in self.places(cfg_ids)))

    def other_images(self, other: ImageSums) -> str:
        """The first difference between these images and others, or what is summed, in words; empty without any."""
        if about(other.score) != about(self.score):
            return f"this evaluation is of {about(other.score)}, the earlier one of {about(self.score)}"
        return super().other_images(other)

    def _joined(self, other: ImageSums) -> ImageSums:
        truth = np.where(self.truth.any(axis=1, keepdims=True), self.truth, other.truth)
        return replace(self, cfg_ids=self.cfg_ids + other.cfg_ids, rows=self.rows + other.rows, truth=truth)

    def _other_truth(self, other: ImageSums) -> str:
        differs = (other.truth != self.truth).any(axis=1) & other.truth.any(axis=1) & self.truth.any(axis=1)
        return f"image {int(differs.argmax()):,} has another truth than in the earlier one" if differs.any() else ""


def sums_file(ledger: str | Path) -> Path:
    """The file beside a ledger."""
    return Path(ledger).with_suffix(".sums")


def write_sums(path: Path, sums: ImageSums, *, of: Mapping[str, object] | None = None) -> None:
    """Write sums, which replace earlier ones only when they are complete; `of` is what unfinished ones depend on."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "counts": np.stack([rows.counts for rows in sums.rows]),
        "columns": np.concatenate([rows.columns for rows in sums.rows]),
        "values": np.concatenate([rows.values for rows in sums.rows]),
        "truth": np.ascontiguousarray(sums.truth, np.int32),
    }
    sums.write(path, arrays, **about(sums.score), of=of)


def read_sums(path: str | Path, *, of: Mapping[str, object] | None = None) -> ImageSums:
    """The sums in a file; `of` is what unfinished ones must depend on.

    Raises:
        InputError: If it is missing or damaged, or unfinished ones are of something else.
    """
    what = "has the sums of each network on each image"
    with opened(path, ImageSums, what, (*_PARTS, "truth")) as (cfg_ids, said, found, names):
        if said.get("of") != json.loads(json.dumps(of)):
            raise ValueError("it is of something else")
        score, counts = score_of(said), found["counts"]
        columns, values, truth = (found[name] for name in ("columns", "values", "truth"))
        kinds = [np.dtype(kind) for kind in (np.uint16, np.uint16, score.kind, np.int32)]
        whole = [array.dtype for array in (counts, columns, values, truth)] == kinds
        whole = whole and len(cfg_ids) == len(counts) and bool(counts.sum() == columns.size == values.size)
        whole = whole and bool((columns < score.own).all() and (truth >= 0).all() and (values >= 0).all())
        if not (whole and np.isfinite(values).all()):
            raise ValueError("its numbers do not fit together")
        ends = counts.sum(axis=1).cumsum()[:-1]
        parts = zip(counts, np.split(columns, ends), np.split(values, ends), strict=True)
        return ImageSums(cfg_ids, score, tuple(SparseRows(*part) for part in parts), truth, names)


def sums_beside(ledger: str | Path) -> ImageSums | None:
    """The sums of a ledger, or None if it has none."""
    path = sums_file(ledger)
    return read_sums(path) if path.exists() else None
