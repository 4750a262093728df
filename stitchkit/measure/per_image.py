"""What networks give on each image of a set, in a file beside their ledger.

It compares two networks much more precisely than two figures do: `stitches_res.hits` has a bit for each answer, and
`stitches_res.sums` the sums of each prediction for pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save
from scipy.sparse import csr_array, vstack

from stitchkit.errors import InputError
from stitchkit.files import check_regular, replacing
from stitchkit.measure.comparison import Compared, OfNetworks, Paired, redraw
from stitchkit.measure.formulas import Bits, Floats
from stitchkit.measure.ledger import Ledger
from stitchkit.measure.scores import FILES, DenseScore, Score, by_class, score_of
from stitchkit.settings.files import unique_keys

REGENERATE = "delete it to continue without intervals; to regenerate them, also delete the ledger and rerun --eval"
_SAYS = {"hits": "says what each network answers to each image", "sums": "has the sums of each network on each image"}
_ARRAYS = {"hits": ("right", "seen", "labels"), "sums": ("counts", "columns", "values", "truth")}
_FOREIGN, _MISFIT = "it is of another format", "its numbers do not fit together"

Rows: TypeAlias = Bits | csr_array
"""What a network gives on each image, `[images, score.own]`; sparse sums, as an image has about ten of 150 classes."""


@dataclass(frozen=True, eq=False)
class PerImage(OfNetworks):
    """What networks give on the images of a set, in its order.

    Args:
        own: For each network what depends on it.
        seen: Whether a network has judged an image that counts, `[networks, images]`.
        truth: What does not depend on a network, `[images, score.truth]`.
        names: The names of the images; empty if the data set has none.
        totals: What is summed over batches, `[networks, score.totals]`; no file of a finished evaluation has it.
    """

    cfg_ids: tuple[int, ...]
    score: Score
    own: tuple[Rows, ...]
    seen: Bits
    truth: npt.NDArray[Any]
    names: tuple[str, ...] = ()
    totals: Floats | None = None

    def __post_init__(self) -> None:
        images = len(self.truth)
        assert self.seen.shape == (len(self.own), images) == (len(self.cfg_ids), images), "of each network and image"
        assert self.truth.shape == (images, self.score.truth), "the truth of each image"
        assert all(rows.shape == (images, self.score.own) for rows in self.own), "a row for each image"
        assert len(self.names) in (0, images), "all images have names, or none"

    @classmethod
    def of_all(
        cls, cfg_ids: Sequence[int], score: Score, own: npt.NDArray[Any], truth: npt.NDArray[Any],
        totals: Floats | None = None,
    ) -> PerImage:  # fmt: skip
        """Of networks that have judged all images, `own` being `[networks, images, score.own]`."""
        values = own.astype(score.dtype)
        assert np.array_equal(values, own), "numbers fit"
        rows = tuple(values) if score.dtype is np.bool_ else tuple(map(csr_array, values))
        seen = np.tile(score.counts(truth), (len(cfg_ids), 1))
        return cls(tuple(cfg_ids), score, rows, seen, truth, totals=totals)

    @classmethod
    def joined(cls, parts: Sequence[PerImage]) -> PerImage:
        """The same networks on the images of all parts, one part after the other, without totals."""
        first = parts[0]
        assert all((part.cfg_ids, part.score) == (first.cfg_ids, first.score) for part in parts), "the same networks"
        own = tuple(map(_stacked, zip(*(part.own for part in parts), strict=True)))
        seen = np.concatenate([part.seen for part in parts], axis=1)
        truth, names = np.concatenate([part.truth for part in parts]), [name for part in parts for name in part.names]
        return replace(first, own=own, seen=seen, truth=truth, names=tuple(names), totals=None)

    def in_order(self, numbers: Sequence[int]) -> PerImage:
        """The same, of images with these numbers in a set, in the order of the set."""
        order = np.argsort(numbers)
        own = tuple(rows[order] for rows in self.own)
        return replace(self, own=own, seen=self.seen[:, order], truth=self.truth[order])

    def of(self, cfg_ids: Sequence[int]) -> PerImage:
        """Some of the networks, in this order, without totals."""
        places = self.places(cfg_ids)
        own = tuple(self.own[place] for place in places)
        return replace(self, cfg_ids=tuple(cfg_ids), own=own, seen=self.seen[places], totals=None)

    def figures(self, cfg_id: int) -> dict[str, float]:
        """The figures of a network for its row in a ledger, and on how many images it was judged."""
        place = self._places[cfg_id]
        totals = None if self.totals is None else self.totals[place]
        return self.score.row(_dense(self.own[place]), self.truth, self.seen[place], totals)

    def classes(self, cfg_id: int, count: int) -> tuple[list[int], list[int]]:
        """Of answers: the right ones of a network, and the images, of each of so many classes."""
        place = self._places[cfg_id]
        seen = self.seen[place]
        return by_class(_dense(self.own[place])[seen, 0], self.truth[seen, 0], count)

    def sums_of(self, cfg_id: int) -> Floats:
        """The sums of a network on each image, `[images, own + truth]`; zeros for unseen images."""
        place = self._places[cfg_id]
        return np.hstack([_dense(self.own[place]).astype(float), self.truth * self.seen[place][:, None]])

    def compared(self, *, samples: int = 1000, seed: int = 0) -> Compared:
        """What tells the networks apart; sums need so many bootstrap sets of the images."""
        if isinstance(self.score, DenseScore):
            sums = map(self.sums_of, self.cfg_ids)
            return redraw(self.cfg_ids, self.score, sums, self.seen, self.truth, samples=samples, seed=seed)
        return Paired(self.cfg_ids, self.score.metric, _answers(self), self.seen)

    def with_more(self, other: PerImage) -> PerImage:
        """These and further networks on the same images; the other's results replace those of the same network."""
        if difference := self.other_images(other):
            advice = "choose another --experiment or move the earlier result away"
            raise InputError(f"{self.score.file} of different images cannot be joined: {difference}; {advice}")
        kept = self.of([cfg_id for cfg_id in self.cfg_ids if not other.has([cfg_id])])
        return replace(
            kept, cfg_ids=kept.cfg_ids + other.cfg_ids, own=kept.own + other.own,
            seen=np.concatenate([kept.seen, other.seen]),
            truth=np.where(self.score.counts(self.truth)[:, None], self.truth, other.truth),
        )  # fmt: skip

    def other_images(self, other: PerImage) -> str:
        """The first difference between these images and others, in words; an image of unknown truth fits any."""
        if (other.score.file, other.score.about()) != (self.score.file, self.score.about()):
            return f"this evaluation is of {other.score.about()}, the earlier one of {self.score.about()}"
        if len(other.truth) != len(self.truth):
            return f"this evaluation has {len(other.truth):,} images, the earlier one {len(self.truth):,}"
        if len(other.names) != len(self.names):
            return f"this evaluation has names for {len(other.names):,} images, the earlier one for {len(self.names):,}"
        for number, (name, before) in enumerate(zip(other.names, self.names, strict=True)):
            if name != before:
                return f"image {number:,} of this evaluation is {name!r}, that of the earlier one {before!r}"
        both = self.score.counts(self.truth) & self.score.counts(other.truth)
        for number in np.flatnonzero(both & (other.truth != self.truth).any(axis=1)).tolist():
            return f"image {number:,} has {self.score.other_truth(other.truth[number], self.truth[number])}"
        return ""

    def file(self, ledger: str | Path) -> Path:
        """The file beside a ledger."""
        return Path(ledger).with_suffix(f".{self.score.file}")

    def keep(self, ledger: Ledger) -> None:
        """Add these to those beside a ledger of the networks that have rows in it."""
        before = PerImage.of_rows(ledger, self.score.metric)
        (before.with_more(self) if before else self).write(self.file(ledger.path))

    @classmethod
    def of_rows(cls, ledger: Ledger, metric: str) -> PerImage | None:
        """Those of the networks in a ledger; those of an earlier one, which was removed, are left out."""
        before = cls.beside(ledger.path, metric) if ledger.rows else None
        return before and before.of([row["cfg_id"] for row in ledger.rows if before.has([row["cfg_id"]])])

    @classmethod
    def beside(cls, ledger: str | Path, metric: str) -> PerImage | None:
        """Those beside a ledger that compare its networks by a metric; None without any, as beside a published one."""
        if metric not in FILES or not (path := Path(ledger).with_suffix(f".{FILES[metric]}")).exists():
            return None
        return images if (images := cls.read(path)).score.metric == metric else None

    def write(self, path: Path, *, of: Mapping[str, object] | None = None) -> None:
        """Write a file, which replaces an earlier one only when it is complete.

        An unfinished one has the totals, and says what it depends on, `of`.
        """
        about = {"format": f"stitchkit {self.score.file} 1", "cfg_ids": self.cfg_ids, **self.score.about()}
        arrays = (_bits if self.score.file == "hits" else _sparse)(self)
        if of is not None:
            arrays["totals"] = np.zeros((len(self.cfg_ids), 0)) if self.totals is None else self.totals
        if of is not None or self.score.file == "sums":
            about["of"] = of
        arrays["names"] = np.frombuffer(json.dumps(self.names).encode(), np.uint8)  # a name may be no text
        with replacing(path) as draft:  # in one entry, since safetensors writes several in any order
            draft.write_bytes(save(arrays, metadata={"about": json.dumps(about)}))

    @classmethod
    def read(cls, path: str | Path, *, of: Mapping[str, object] | None = None, file: str = "") -> PerImage:
        """Those in a file; in an unfinished one of a score's `file`, if it depends on `of`."""
        file = file or Path(path).suffix[1:]
        check_regular(Path(path))
        try:
            with safe_open(path, framework="np") as content:
                about = json.loads(content.metadata()["about"], object_pairs_hook=unique_keys)
                *arrays, names = (content.get_tensor(name) for name in (*_ARRAYS[file], "names"))
                totals = None if of is None else content.get_tensor("totals")
            cfg_ids = tuple(map(int, about["cfg_ids"]))
            if about["format"] != f"stitchkit {file} 1" or len({*cfg_ids}) != len(cfg_ids):
                raise ValueError(_FOREIGN)
            if about.get("of") != json.loads(json.dumps(of)):
                raise ValueError("it is of something else")
            score = score_of(about, file)
            own, seen, truth = _from_bits(*arrays) if file == "hits" else _from_sparse(score, len(cfg_ids), *arrays)
            if totals is not None and (totals.shape, totals.dtype) != ((len(cfg_ids), score.totals), np.float64):
                raise ValueError(_MISFIT)
            return cls(cfg_ids, score, own, seen, truth, tuple(map(str, json.loads(bytes(names)))), totals)
        except Exception as error:  # a damaged file can hold anything
            raise InputError(f"'{path}', which {_SAYS[file]}, cannot be read: {error}; {REGENERATE}") from error


def _dense(rows: Rows) -> npt.NDArray[Any]:
    dense: npt.NDArray[Any] = rows.toarray() if isinstance(rows, csr_array) else rows
    return dense


def _stacked(parts: Sequence[Rows]) -> Rows:
    return vstack(parts, format="csr") if isinstance(parts[0], csr_array) else np.concatenate(parts)


def _answers(images: PerImage) -> Bits:
    """Whether networks are right, `[networks, images]`."""
    return np.array(images.own, bool).reshape(images.seen.shape)


def _bits(images: PerImage) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file of hits: eight bits in a byte, row by row, and `labels`."""
    # Contiguous: safetensors would write the memory of columns as if they were rows.
    packed = (np.ascontiguousarray(np.packbits(bits, axis=1)) for bits in (_answers(images), images.seen))
    return dict(zip(_ARRAYS["hits"], (*packed, images.truth[:, 0].astype(np.int32)), strict=True))


def _from_bits(*arrays: npt.NDArray[Any]) -> tuple[tuple[Rows, ...], Bits, npt.NDArray[Any]]:
    *packed, labels = arrays
    if not packed[0].shape == packed[1].shape == (len(packed[0]), -(-len(labels) // 8)):  # NumPy makes up missing bytes
        raise ValueError(_FOREIGN)
    right, seen = (np.unpackbits(bits, axis=1, count=len(labels)).astype(bool) for bits in packed)
    return tuple((right & seen)[..., None]), seen, labels.astype(np.int64)[:, None]


def _sparse(images: PerImage) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file of sums: the numbers that are not 0, one network and image after the other."""
    every = [*map(csr_array, images.own)]
    counts = np.stack([np.diff(rows.indptr).astype(np.uint16) for rows in every])
    columns = np.concatenate([rows.indices for rows in every]).astype(np.uint16)
    values = np.concatenate([rows.data for rows in every])
    truth = np.ascontiguousarray(images.truth, np.int32)
    return dict(zip(_ARRAYS["sums"], (counts, columns, values, truth), strict=True))


def _from_sparse(
    score: Score, networks: int, *arrays: npt.NDArray[Any]
) -> tuple[tuple[Rows, ...], Bits, npt.NDArray[Any]]:
    counts, columns, values, truth = arrays
    kinds = [np.dtype(kind) for kind in (np.uint16, np.uint16, score.dtype, np.int32)]
    whole = [array.dtype for array in arrays] == kinds
    whole = whole and networks == len(counts) and bool(counts.sum() == columns.size == values.size)
    whole = whole and bool((columns < score.own).all() and (truth >= 0).all() and (values >= 0).all())
    if not (whole and np.isfinite(values).all()):
        raise ValueError(_MISFIT)
    ends, shape = counts.sum(axis=1).cumsum()[:-1], (len(truth), score.own)
    parts = zip(np.split(values, ends), np.split(columns, ends), counts, strict=True)
    own = (csr_array((part, places, np.r_[0, number.cumsum()]), shape) for part, places, number in parts)
    return tuple(own), (counts > 0) & truth.any(axis=1), truth
