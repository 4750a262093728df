"""Sweeps: every gap bridged by every stitcher, one job each.

Source: the "across scales" sweeps of "Bridging Large Gaps in Neural Network Representations with Model Stitching".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from stitchkit.assembly.config.files import naming, read_yaml
from stitchkit.assembly.config.job import SWEEP_KEYS, JobConfig
from stitchkit.assembly.config.settings import TrainConfig
from stitchkit.assembly.parts.spec import PartSpec
from stitchkit.assembly.sweep.shapes import PieceShapes, piece_shapes
from stitchkit.assembly.sweep.stitchers import DEFAULT_STITCHERS, PartDict, check_stitcher
from stitchkit.errors import InputError


@dataclass(frozen=True)
class Gap:
    """Pieces that are left out between two networks.

    Args:
        first: Number of the first piece left out; the source's pieces before it stay.
        last: Number of the last piece left out; the destination's pieces after it stay.
        num_downsamples: How many times the pieces left out halve the map.
    """

    first: int
    last: int
    num_downsamples: int

    @classmethod
    def parse(cls, value: object, place: str) -> Gap:
        """The gap that a YAML value describes: `{blocks_to_drop: [i, j], num_downsamples: n}`.

        Raises:
            InputError: If it is anything else.
        """
        match value:
            case {"blocks_to_drop": [int(first), int(last)], "num_downsamples": int(count), **rest} if not rest:
                if 1 <= first <= last and count >= 0:
                    return cls(first, last, count)
        raise InputError(
            f"{place} is {value!r}; a gap is {{blocks_to_drop: [first, last], num_downsamples: n}}, "
            "with 1 <= first <= last"
        )

    def __str__(self) -> str:
        return f"{self.first},{self.last}"


DEFAULT_GAPS = tuple(
    Gap(*numbers)
    for numbers in [(1, 1, 0), (1, 2, 1), (1, 4, 2), (1, 6, 3), (3, 3, 0), (3, 4, 1), (3, 6, 2), (5, 5, 0), (5, 6, 1)]
)
"""The nine of the published sweeps, for networks of eight pieces."""


@dataclass(frozen=True)
class CutNetwork:
    """A network in pieces.

    Args:
        pieces: The parts that it is made of.
        shapes: What each takes and gives.
    """

    pieces: tuple[PartDict, ...]
    shapes: tuple[PieceShapes, ...]

    @classmethod
    def create(cls, pieces: Sequence[PartSpec], image_size: int) -> CutNetwork:
        """The network that these pieces are; it is built and run once, without weights and memory.

        Raises:
            InputError: If a piece cannot be built or run, or does not take and give what it declares.
        """
        return cls(tuple({spec.name: dict(spec.arguments)} for spec in pieces), piece_shapes(pieces, image_size))


@dataclass(frozen=True)
class SweepConfig:
    """A sweep: two networks in pieces, the gaps between them and the stitchers to try.

    Args:
        name: The stem of its file; it begins the name of each job's folder.
        source: Pieces of the network that gives the first blocks: a stem, the rest of its stage, then in turn a
            down-sampling piece and the rest of its stage.
        destination: Pieces of the network that gives the last blocks, in the same way.
        gaps: What is left out.
        stitchers: What stands in its place, by name.
        job: All other keys, which every job gets.
    """

    name: str
    source: CutNetwork
    destination: CutNetwork
    gaps: tuple[Gap, ...] = DEFAULT_GAPS
    stitchers: tuple[str, ...] = DEFAULT_STITCHERS
    job: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, **changes: Any) -> SweepConfig:
        """The sweep in a file.

        Args:
            path: The file.
            changes: Settings of its jobs that take the place of the file's, by key, those of `train_config` among them.

        Raises:
            InputError: If the file cannot be used; the message begins with the file, the line and the key.
        """
        content = read_yaml(path)
        of_training = {item.name for item in fields(TrainConfig)}
        train = {key: changes.pop(key) for key in list(changes) if key in of_training}
        with naming(path):
            if train:
                own = content.get("train_config") or {}
                # What holds no settings is left as it is, for the error that names its place.
                changes["train_config"] = {**own, **train} if isinstance(own, Mapping) else own
            return cls.parse({**content, **changes}, Path(path).stem)

    @classmethod
    def parse(cls, content: Mapping[str, Any], name: str) -> SweepConfig:
        """The sweep that a file describes.

        Raises:
            InputError: If a key is missing or has a value that no sweep can have.
        """
        if ("stages" in content) == ("src_stages" in content or "dest_stages" in content):
            raise InputError("a sweep has either stages, or src_stages and dest_stages; give one of the two")
        keys = ("stages",) if "stages" in content else ("src_stages", "dest_stages")
        pieces = [_pieces(content, key) for key in keys]
        others = {key: value for key, value in content.items() if key not in SWEEP_KEYS}
        job = JobConfig.parse({"assembly": [{spec.name: spec.arguments} for spec in pieces[0]], **others})
        image_size = job.train_config.resolved_tasks[0].data_preprocessing.image_size
        gaps, stitchers = content.get("gaps"), content.get("stitchers")
        networks = [CutNetwork.create(specs, image_size) for specs in pieces]
        config = cls(
            name,
            networks[0],
            networks[-1],
            DEFAULT_GAPS if gaps is None else tuple(Gap.parse(*item) for item in _items(gaps, "gaps")),
            DEFAULT_STITCHERS
            if stitchers is None
            else tuple(check_stitcher(*item) for item in _items(stitchers, "stitchers")),
            others,
        )
        config._check_gaps()
        _check_twice("gaps", [f"[{gap}]" for gap in config.gaps])
        _check_twice("stitchers", config.stitchers)
        return config

    def _check_gaps(self) -> None:
        for number, gap in enumerate(self.gaps):
            last = len(self.source.pieces) - 1, len(self.destination.pieces) - 1
            if gap.first > last[0] or gap.last >= last[1]:
                raise InputError(
                    f"gaps[{number}]: [{gap}] leaves nothing of a network; the source has pieces 0 to {last[0]}, the "
                    f"destination 0 to {last[1]}"
                )

    @property
    def seed(self) -> int | None:
        """The seed of its jobs, which the names of their results carry."""
        seed = self.job.get("train_config", {}).get("seed")
        return None if seed is None else int(seed)


def _pieces(content: Mapping[str, Any], key: str) -> list[PartSpec]:
    if key not in content:
        raise InputError(f"{key} is missing; a sweep has either stages, or src_stages and dest_stages")
    return [PartSpec.parse(*item) for item in _items(content[key], key)]


def _check_twice(key: str, names: Sequence[str]) -> None:
    """Refuse what is there twice: its jobs would share a folder."""
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError(f"{key}[{number}]: {name} is there twice, as {key}[{names.index(name)}]; take one out")


def _items(value: object, key: str) -> list[tuple[Any, str]]:
    """The items of a list, each with its place in the file."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise InputError(f"{key} is {value!r}; give a list")
    return [(item, f"{key}[{number}]") for number, item in enumerate(value)]
