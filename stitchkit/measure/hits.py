"""Hits: which images each network of a ledger classifies correctly, one bit per network and image, in a file beside it.

All networks judge the same images, so that the hits tell two networks apart far better than two accuracies do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from stitchkit.errors import InputError
from stitchkit.files import replacing

Bits = npt.NDArray[np.bool_]
_FORMAT = "stitchkit hits 1"


@dataclass(frozen=True, eq=False)
class Hits:
    """The answers of networks to the images of a set, in its order.

    Args:
        cfg_ids: The networks.
        right: Whether a network's answer is the label, `[networks, images]`.
        seen: Whether it was asked, `[networks, images]`; where it was not, `right` is False.
        labels: `[images]`; -1 is an image that does not count, which no network has seen.
        names: Those of the images; empty if the data set has none.
    """

    cfg_ids: tuple[int, ...]
    right: Bits
    seen: Bits
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...] = ()
    metric: ClassVar[str] = "acc1"
    kind: ClassVar[str] = "hits"

    def __post_init__(self) -> None:
        shape = (len(self.cfg_ids), len(self.labels))
        assert self.right.shape == self.seen.shape == shape, "a row for each network, a column for each image"
        assert len(self.names) in (0, len(self.labels)), "all images have names, or none"

    @cached_property
    def _places(self) -> dict[int, int]:
        return {cfg_id: place for place, cfg_id in enumerate(self.cfg_ids)}

    def has(self, cfg_ids: Sequence[int]) -> bool:
        """Whether all of some networks are here."""
        return self._places.keys() >= {*cfg_ids}

    def of(self, cfg_ids: Sequence[int]) -> Hits:
        """Some of the networks, in this order."""
        places = [self._places[cfg_id] for cfg_id in cfg_ids]
        return replace(self, cfg_ids=tuple(cfg_ids), right=self.right[places], seen=self.seen[places])

    def with_more(self, other: Hits) -> Hits:
        """These and further networks on the same images; the other's row of a network replaces the one here.

        Raises:
            InputError: If the images are others.
        """
        if found := self.other_images(other.labels.tolist(), other.names):
            raise InputError(
                f"hits on different images cannot be joined: {found}; choose another --experiment or move the earlier "
                "result away"
            )
        kept = self.of([cfg_id for cfg_id in self.cfg_ids if cfg_id not in other._places])
        right, seen = (np.concatenate(pair) for pair in ((kept.right, other.right), (kept.seen, other.seen)))
        labels = np.where(self.labels < 0, other.labels, self.labels)
        return replace(self, cfg_ids=kept.cfg_ids + other.cfg_ids, right=right, seen=seen, labels=labels)

    def other_images(self, labels: Sequence[int], names: Sequence[str]) -> str:
        """The first difference between these images and others, in words; empty if they are the same.

        Args:
            labels: Those of the others; -1 is an image whose label is not known, which fits any.
            names: Those of the others.
        """
        if len(labels) != len(self.labels):
            return f"this evaluation has {len(labels):,} images, the earlier one {len(self.labels):,}"
        if found := other_names(names, self.names):
            return found
        for number, (label, known) in enumerate(zip(labels, self.labels.tolist(), strict=True)):
            if label != known and min(label, known) >= 0:
                return f"image {number:,} has label {label} in this evaluation, and {known} in the earlier one"
        return ""


def other_names(names: Sequence[str], earlier: Sequence[str]) -> str:
    """The first difference between the names of images and those of an earlier evaluation; empty if there is none."""
    if len(names) != len(earlier):
        return f"this evaluation has names for {len(names):,} images, the earlier one for {len(earlier):,}"
    for number, (name, before) in enumerate(zip(names, earlier, strict=True)):
        if name != before:
            return f"image {number:,} of this evaluation is {name!r}, that of the earlier one {before!r}"
    return ""


def hits_file(ledger: str | Path) -> Path:
    """The file beside a ledger."""
    return Path(ledger).with_suffix(".hits")


def write_hits(path: Path, hits: Hits) -> None:
    """Write hits, which replace earlier ones only when they are complete."""
    names = json.dumps(hits.names).encode()  # a file's name may have several lines, or be no text
    tensors: dict[str, npt.NDArray[Any]] = {
        "right": _packed(hits.right),
        "seen": _packed(hits.seen),
        "labels": hits.labels.astype(np.int32),
        "names": np.frombuffer(names, np.uint8),
    }
    # In one entry, since safetensors writes several in any order.
    about = json.dumps({"format": _FORMAT, "cfg_ids": hits.cfg_ids})
    with replacing(path) as draft:
        draft.write_bytes(save(tensors, metadata={"about": about}))


def _packed(bits: Bits) -> npt.NDArray[np.uint8]:
    """Eight bits in a byte, row by row: safetensors would write the memory of columns as if they were rows."""
    return np.ascontiguousarray(np.packbits(bits, axis=1))


def read_hits(path: str | Path) -> Hits:
    """The hits in a file.

    Raises:
        InputError: If it is missing or damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads(file.metadata()["about"])
            found = {name: file.get_tensor(name) for name in ("right", "seen", "labels", "names")}
        labels = found["labels"].astype(np.int64)
        names = tuple(map(str, json.loads(bytes(found["names"]))))
        right, seen = (np.unpackbits(found[name], axis=1, count=len(labels)).astype(bool) for name in ("right", "seen"))
        cfg_ids = tuple(map(int, about["cfg_ids"]))
        hits = Hits(cfg_ids, right & seen, seen, labels, names)
        # NumPy makes up the bits of missing bytes.
        is_whole = found["right"].shape[1] == found["seen"].shape[1] == -(-len(labels) // 8)
        if about["format"] != _FORMAT or len({*cfg_ids}) != len(cfg_ids) or not is_whole:
            raise ValueError("it is of another format")
    except Exception as error:  # a damaged file can hold anything
        raise InputError(
            f"'{path}', which says what each network answers to each image, cannot be read: {error}; remove it to "
            "leave intervals out; to have them again, remove the ledger too and repeat --eval"
        ) from error
    return hits


def hits_beside(ledger: str | Path) -> Hits | None:
    """The hits of a ledger, or None if it has none, as published ones."""
    path = hits_file(ledger)
    return read_hits(path) if path.exists() else None
