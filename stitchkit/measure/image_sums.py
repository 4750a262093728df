"""The sums of each network of a ledger on each image of a dense task, in a file beside it.

They compare two networks much more precisely than two figures do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, vstack

from stitchkit.measure.by_image import Beside, opened
from stitchkit.measure.dense_score import DenseScore, about, score_of
from stitchkit.measure.formulas import Bits, Floats


@dataclass(frozen=True, eq=False)
class ImageSums(Beside):
    """The sums of networks on the images of a set, in its order.

    Args:
        rows: For each network the sums of every image that depend on it, `[images, score.own]`, sparse: of 150 classes,
            an image has about ten. An image without any is one that it has not seen.
        truth: The sums that do not, `[images, score.truth]`; zeros are an image that does not count, as it could not be
            read, or has no known pixel.
        names: The names of the images; empty if the data set has none.
    """

    cfg_ids: tuple[int, ...]
    score: DenseScore
    rows: tuple[csr_array, ...]
    truth: npt.NDArray[np.int32]
    names: tuple[str, ...] = ()
    kind: ClassVar[str] = "sums"

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.cfg_ids), "rows for each network"
        assert self.truth.shape == (len(self.truth), self.score.truth), "the truth of each image"
        assert all(rows.shape == (len(self.truth), self.score.own) for rows in self.rows), "a row for each image"
        assert len(self.names) in (0, len(self.truth)), "all images have names, or none"

    @classmethod
    def from_sums(
        cls, cfg_ids: Sequence[int], score: DenseScore, sums: npt.NDArray[Any], names: Sequence[str] = ()
    ) -> ImageSums:
        """The sums of some networks on some images."""
        own, truth = sums[..., : score.own], sums[..., score.own :]
        assert (truth == truth[:1]).all(), "all networks judge the same images"
        values = own.astype(score.kind)
        assert np.array_equal(values, own), "numbers fit"
        rows = tuple(map(csr_array, values))
        return cls(tuple(cfg_ids), score, rows, truth[0].astype(np.int32), tuple(names))

    @classmethod
    def joined(cls, parts: Sequence[ImageSums]) -> ImageSums:
        """The sums of the same networks on the images of all parts, one part after the other."""
        first = parts[0]
        assert all((part.cfg_ids, part.score) == (first.cfg_ids, first.score) for part in parts), "the same networks"
        rows = tuple(vstack(each, format="csr") for each in zip(*(part.rows for part in parts), strict=True))
        names = tuple(name for part in parts for name in part.names)
        return replace(first, rows=rows, truth=np.concatenate([part.truth for part in parts]), names=names)

    def in_order(self, numbers: Sequence[int], names: Sequence[str]) -> ImageSums:
        """The same, of images with these numbers in a set, in the order of the set, with the names of its images."""
        order = np.argsort(numbers)
        rows = tuple(each[order] for each in self.rows)
        return replace(self, rows=rows, truth=self.truth[order], names=tuple(names))

    @property
    def num_images(self) -> int:
        """How many images the set has."""
        return len(self.truth)

    @property
    def seen(self) -> Bits:
        """Whether a network has judged an image that counts, `[networks, images]`."""
        judged = np.array([_counts(rows) > 0 for rows in self.rows], bool).reshape(len(self.rows), len(self.truth))
        return judged & self.truth.any(axis=1)

    def sums_of(self, cfg_id: int) -> Floats:
        """The sums of a network on each image, `[images, own + truth]`; zeros for unseen images."""
        rows = self.rows[self.places([cfg_id])[0]]
        return np.hstack([rows.toarray().astype(float), self.truth * (_counts(rows) > 0)[:, None]])

    def figures(self, cfg_id: int) -> dict[str, float]:
        """The figures of a network for its row in a ledger, and on how many images it was judged."""
        figures = {name: float(value) for name, value in self.score.figures(self.sums_of(cfg_id).sum(axis=0)).items()}
        return figures | {"images": int(self.of([cfg_id]).seen.sum())}

    def of(self, cfg_ids: Sequence[int]) -> ImageSums:
        """Some of the networks, in this order."""
        return replace(self, cfg_ids=tuple(cfg_ids), rows=tuple(self.rows[index] for index in self.places(cfg_ids)))

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


def _counts(rows: csr_array) -> npt.NDArray[np.uint16]:
    counts: npt.NDArray[np.uint16] = np.diff(rows.indptr).astype(np.uint16)
    return counts


def sums_file(ledger: str | Path) -> Path:
    """The file beside a ledger."""
    return Path(ledger).with_suffix(".sums")


def write_sums(path: Path, sums: ImageSums, *, of: Mapping[str, object] | None = None) -> None:
    """Write sums, which replace earlier ones only when they are complete; `of` is what unfinished ones depend on."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "counts": np.stack([_counts(rows) for rows in sums.rows]),
        "columns": np.concatenate([rows.indices for rows in sums.rows]).astype(np.uint16),
        "values": np.concatenate([rows.data for rows in sums.rows]),
        "truth": np.ascontiguousarray(sums.truth, np.int32),
    }
    sums.write(path, arrays, **about(sums.score), of=of)


def read_sums(path: str | Path, *, of: Mapping[str, object] | None = None) -> ImageSums:
    """The sums in a file, if unfinished ones depend on `of`."""
    what = "has the sums of each network on each image"
    with opened(path, ImageSums, what, ("counts", "columns", "values", "truth")) as (cfg_ids, content, arrays, names):
        if content.get("of") != json.loads(json.dumps(of)):
            raise ValueError("it is of something else")
        score, counts = score_of(content), arrays["counts"]
        columns, values, truth = (arrays[name] for name in ("columns", "values", "truth"))
        kinds = [np.dtype(kind) for kind in (np.uint16, np.uint16, score.kind, np.int32)]
        whole = [array.dtype for array in (counts, columns, values, truth)] == kinds
        whole = whole and len(cfg_ids) == len(counts) and bool(counts.sum() == columns.size == values.size)
        whole = whole and bool((columns < score.own).all() and (truth >= 0).all() and (values >= 0).all())
        if not (whole and np.isfinite(values).all()):
            raise ValueError("its numbers do not fit together")
        ends, shape = counts.sum(axis=1).cumsum()[:-1], (len(truth), score.own)
        parts = zip(np.split(values, ends), np.split(columns, ends), counts, strict=True)
        rows = (csr_array((own, places, np.r_[0, number.cumsum()]), shape) for own, places, number in parts)
        return ImageSums(cfg_ids, score, tuple(rows), truth, names)


def sums_beside(ledger: str | Path) -> ImageSums | None:
    """The sums of a ledger, or None if it has none."""
    path = sums_file(ledger)
    return read_sums(path) if path.exists() else None
