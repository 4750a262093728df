"""What is known of networks on each image of a set: what its kinds have in common, and their files beside a ledger."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from stitchkit.errors import InputError
from stitchkit.files import check_regular, replacing

if TYPE_CHECKING:
    from typing_extensions import Self

REGENERATE = "delete it to continue without intervals; to regenerate them, also delete the ledger and rerun --eval"


class OfNetworks:
    """What is known of some networks, by their numbers."""

    cfg_ids: tuple[int, ...]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {cfg_id: index for index, cfg_id in enumerate(self.cfg_ids)}

    def places(self, cfg_ids: Sequence[int]) -> list[int]:
        """Where some of the networks are."""
        return [self._places[cfg_id] for cfg_id in cfg_ids]

    def has(self, cfg_ids: Sequence[int]) -> bool:
        """Whether all of some networks are here."""
        return self._places.keys() >= {*cfg_ids}


class Beside(OfNetworks, ABC):
    """What networks give on each image of a set, in its order, in a file beside their ledger."""

    kind: ClassVar[str]
    """What the file has, which is also the ending of its name."""
    names: tuple[str, ...]
    """The names of the images; empty if the data set has none."""

    @property
    @abstractmethod
    def num_images(self) -> int:
        """How many images the set has."""

    @abstractmethod
    def of(self, cfg_ids: Sequence[int]) -> Self:
        """Some of the networks, in this order."""

    @abstractmethod
    def _joined(self, other: Self) -> Self:
        """These networks and others, on the same images."""

    @abstractmethod
    def _other_truth(self, other: Self) -> str:
        """The first image of others, in words, that has another truth than here."""

    def with_more(self, other: Self) -> Self:
        """These and further networks on the same images; the other's results replace those of the same network."""
        if difference := self.other_images(other):
            advice = "choose another --experiment or move the earlier result away"
            raise InputError(f"{self.kind} of different images cannot be joined: {difference}; {advice}")
        return self.of([cfg_id for cfg_id in self.cfg_ids if not other.has([cfg_id])])._joined(other)

    def other_images(self, other: Self) -> str:
        """The first difference between these images and others, in words; an image of unknown truth fits any."""
        if other.num_images != self.num_images:
            return f"this evaluation has {other.num_images:,} images, the earlier one {self.num_images:,}"
        if len(other.names) != len(self.names):
            return f"this evaluation has names for {len(other.names):,} images, the earlier one for {len(self.names):,}"
        for number, (name, before) in enumerate(zip(other.names, self.names, strict=True)):
            if name != before:
                return f"image {number:,} of this evaluation is {name!r}, that of the earlier one {before!r}"
        return self._other_truth(other)

    def write(self, path: Path, arrays: Mapping[str, npt.NDArray[Any]], **about: object) -> None:
        """Write a file, which replaces an earlier one only when it is complete; `about` is what it says of itself."""
        names = json.dumps(self.names).encode()  # a file's name may have several lines, or be no text
        # In one entry, since safetensors writes several in any order.
        metadata = json.dumps({"format": f"stitchkit {self.kind} 1", "cfg_ids": self.cfg_ids, **about})
        with replacing(path) as draft:
            draft.write_bytes(save({**arrays, "names": np.frombuffer(names, np.uint8)}, metadata={"about": metadata}))


@contextmanager
def opened(
    path: str | Path, kind: type[Beside], what: str, names: Sequence[str]
) -> Iterator[tuple[tuple[int, ...], dict[str, Any], dict[str, npt.NDArray[Any]], tuple[str, ...]]]:
    """The `cfg_id`s in a file, what it says of itself, its arrays of some names, and the names of its images.

    What the block raises is an `InputError` about the file, which has or says `what`.
    """
    check_regular(Path(path))
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads(file.metadata()["about"])
            arrays = {name: file.get_tensor(name) for name in (*names, "names")}
        cfg_ids = tuple(map(int, about["cfg_ids"]))
        if about["format"] != f"stitchkit {kind.kind} 1" or len({*cfg_ids}) != len(cfg_ids):
            raise ValueError("it is of another format")
        yield cfg_ids, about, arrays, tuple(map(str, json.loads(bytes(arrays["names"]))))
    except Exception as error:  # a damaged file can hold anything
        raise InputError(f"'{path}', which {what}, cannot be read: {error}; {REGENERATE}") from error
