"""What each network of a ledger gives on each image of a dense task, in a file beside it.

All networks judge the same images, so that the sums of single images tell two networks apart far better than two
figures do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from stitchkit.errors import InputError
from stitchkit.files import replacing
from stitchkit.measure.dense_score import DenseScore, Floats, about, score_of
from stitchkit.measure.hits import Bits, other_names

_FORMAT = "stitchkit sums 1"
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
        """Those of `[rows, columns]`, with values of a kind."""
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
class ImageSums:
    """The sums of networks on the images of a set, in its order.

    Args:
        cfg_ids: The networks.
        score: What is summed.
        rows: For each network the sums of every image that depend on it, `[images, score.own]`; an image without any
            is one that it has not seen.
        truth: Those that do not, `[images, score.truth]`; zeros are an image that does not count, as it could not be
            read, or has no known pixel.
        names: Those of the images; empty if the data set has none.
    """

    cfg_ids: tuple[int, ...]
    score: DenseScore
    rows: tuple[SparseRows, ...]
    truth: npt.NDArray[np.int32]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.cfg_ids), "rows for each network"
        assert self.truth.shape == (len(self.truth), self.score.truth), "the truth of each image"
        assert all(len(rows.counts) == len(self.truth) for rows in self.rows), "a row for each image"
        assert len(self.names) in (0, len(self.truth)), "all images have names, or none"

    @classmethod
    def from_sums(
        cls, cfg_ids: Sequence[int], score: DenseScore, sums: npt.NDArray[Any], names: Sequence[str] = ()
    ) -> ImageSums:
        """Those of some networks on some images.

        Args:
            cfg_ids: The networks.
            score: What is summed.
            sums: The sums of each image, `[networks, images, score.own + score.truth]`.
            names: Those of the images.
        """
        own, truth = sums[..., : score.own], sums[..., score.own :]
        assert (truth == truth[:1]).all(), "all networks judge the same images"
        rows = tuple(SparseRows.of(each, score.kind) for each in own)
        return cls(tuple(cfg_ids), score, rows, truth[0].astype(np.int32), tuple(names))

    @classmethod
    def joined(cls, parts: Sequence[ImageSums]) -> ImageSums:
        """Those of the same networks on the images of all parts, one part after the other."""
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

    @cached_property
    def _places(self) -> dict[int, int]:
        return {cfg_id: place for place, cfg_id in enumerate(self.cfg_ids)}

    @property
    def seen(self) -> Bits:
        """Whether a network has judged an image that counts, `[networks, images]`."""
        judged = np.array([rows.counts > 0 for rows in self.rows], bool).reshape(len(self.rows), len(self.truth))
        return judged & self.truth.any(axis=1)

    def sums_of(self, cfg_id: int) -> Floats:
        """The sums of a network on each image, `[images, own + truth]`; zeros for an image that it has not seen."""
        rows = self.rows[self._places[cfg_id]]
        return np.hstack([rows.dense(self.score.own), self.truth * (rows.counts > 0)[:, None]])

    def figures(self, cfg_id: int) -> dict[str, float]:
        """The figures of a network for its row in a ledger, and on how many images it was judged."""
        found = {name: float(value) for name, value in self.score.figures(self.sums_of(cfg_id).sum(axis=0)).items()}
        return found | {"images": int(self.of([cfg_id]).seen.sum())}

    def has(self, cfg_ids: Sequence[int]) -> bool:
        """Whether all of some networks are here."""
        return self._places.keys() >= {*cfg_ids}

    def of(self, cfg_ids: Sequence[int]) -> ImageSums:
        """Some of the networks, in this order."""
        return replace(self, cfg_ids=tuple(cfg_ids), rows=tuple(self.rows[self._places[each]] for each in cfg_ids))

    def with_more(self, other: ImageSums) -> ImageSums:
        """These and further networks on the same images; the other's sums of a network replace those here.

        Raises:
            InputError: If the images are others.
        """
        if found := self.other_images(other):
            raise InputError(
                f"sums of different images cannot be joined: {found}; choose another --experiment or move the earlier "
                "result away"
            )
        kept = self.of([cfg_id for cfg_id in self.cfg_ids if cfg_id not in other._places])
        truth = np.where(self.truth.any(axis=1, keepdims=True), self.truth, other.truth)
        return replace(self, cfg_ids=kept.cfg_ids + other.cfg_ids, rows=kept.rows + other.rows, truth=truth)

    def other_images(self, other: ImageSums) -> str:
        """The first difference between these images and others, in words; empty if they are the same.

        An image that does not count fits any: it could not be read once.
        """
        if about(other.score) != about(self.score):
            return f"this evaluation is of {about(other.score)}, the earlier one of {about(self.score)}"
        if len(other.truth) != len(self.truth):
            return f"this evaluation has {len(other.truth):,} images, the earlier one {len(self.truth):,}"
        if found := other_names(other.names, self.names):
            return found
        differs = (other.truth != self.truth).any(axis=1) & other.truth.any(axis=1) & self.truth.any(axis=1)
        return f"image {int(differs.argmax()):,} has another truth than in the earlier one" if differs.any() else ""


def sums_file(ledger: str | Path) -> Path:
    """The file beside a ledger."""
    return Path(ledger).with_suffix(".sums")


def write_sums(path: Path, sums: ImageSums, *, of: Mapping[str, object] | None = None) -> None:
    """Write sums, which replace earlier ones only when they are complete; `of` is what unfinished ones depend on."""
    tensors: dict[str, npt.NDArray[Any]] = {
        "counts": np.stack([rows.counts for rows in sums.rows]),
        "columns": np.concatenate([rows.columns for rows in sums.rows]),
        "values": np.concatenate([rows.values for rows in sums.rows]),
        "truth": np.ascontiguousarray(sums.truth, np.int32),
        "names": np.frombuffer(json.dumps(sums.names).encode(), np.uint8),
    }
    # In one entry, since safetensors writes several in any order.
    said = json.dumps({"format": _FORMAT, "cfg_ids": sums.cfg_ids, **about(sums.score), "of": of})
    with replacing(path) as draft:
        draft.write_bytes(save(tensors, metadata={"about": said}))


def read_sums(path: str | Path, *, of: Mapping[str, object] | None = None) -> ImageSums:
    """The sums in a file; `of` is what unfinished ones must depend on.

    Raises:
        InputError: If it is missing or damaged, or unfinished ones are of something else.
    """
    try:
        with safe_open(path, framework="np") as file:
            said = json.loads(file.metadata()["about"])
            found = {name: file.get_tensor(name) for name in (*_PARTS, "truth", "names")}
        if said["format"] != _FORMAT or said.get("of") != json.loads(json.dumps(of)):
            raise ValueError("it is of another format")
        names, cfg_ids = tuple(map(str, json.loads(bytes(found["names"])))), tuple(map(int, said["cfg_ids"]))
        score, counts = score_of(said), found["counts"]
        whole = len({*cfg_ids}) == len(cfg_ids) == len(counts) and found["truth"].dtype == np.int32
        kinds = (counts.dtype, found["columns"].dtype, found["values"].dtype)
        whole &= kinds == (np.uint16, np.uint16, score.kind)
        whole &= (found["columns"] < score.own).all() and (found["truth"] >= 0).all()
        whole &= counts.sum() == found["columns"].size == found["values"].size
        if not (whole and np.isfinite(found["values"]).all() and (found["values"] >= 0).all()):
            raise ValueError("its numbers do not fit together")
        ends = counts.sum(axis=1).cumsum()[:-1]
        parts = zip(counts, *(np.split(found[name], ends) for name in ("columns", "values")), strict=True)
        sums = ImageSums(cfg_ids, score, tuple(SparseRows(*part) for part in parts), found["truth"], names)
    except Exception as error:  # a damaged file can hold anything
        raise InputError(
            f"'{path}', which has the sums of each network on each image, cannot be read: {error}; remove it to leave "
            "intervals out; to have them again, remove the ledger too and repeat --eval"
        ) from error
    return sums


def sums_beside(ledger: str | Path) -> ImageSums | None:
    """The sums of a ledger, or None if it has none."""
    path = sums_file(ledger)
    return read_sums(path) if path.exists() else None
