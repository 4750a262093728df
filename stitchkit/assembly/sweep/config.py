"""Sweeps: every gap bridged by every stitcher, one job each.

Source: the "across scales" sweeps of "Bridging Large Gaps in Neural Network Representations with Model Stitching".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, StrictInt, StrictStr
from pydantic.dataclasses import dataclass
from pydantic.json_schema import JsonSchemaValue

from stitchkit.assembly.config.job import SWEEP_KEYS, JobConfig, override
from stitchkit.assembly.parts.registry import WrittenPart
from stitchkit.assembly.parts.spec import PartSpec
from stitchkit.assembly.sweep.shapes import SliceShapes, slice_shapes
from stitchkit.assembly.sweep.stitchers import DEFAULT_STITCHERS, FINETUNE, STITCHERS
from stitchkit.errors import InputError, unknown
from stitchkit.settings.files import naming, read_settings_file
from stitchkit.settings.schema import Settings, json_schema, parse


@dataclass(frozen=True)
class Gap(Settings):
    """Slices that are left out between two networks.

    Args:
        blocks_to_drop: Numbers of the first and the last slice left out; the source's slices before them and the
            destination's after them stay.
        num_downsamples: Number of times that the slices left out halve the map.
    """

    blocks_to_drop: tuple[StrictInt, StrictInt]
    num_downsamples: StrictInt = Field(ge=0)

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise InputError(f"blocks_to_drop is [{self}]; it must be [first, last] with 1 <= first <= last")

    @property
    def first(self) -> int:
        """Number of the first slice left out."""
        return self.blocks_to_drop[0]

    @property
    def last(self) -> int:
        """Number of the last slice left out."""
        return self.blocks_to_drop[1]

    def __str__(self) -> str:
        return f"{self.first},{self.last}"


@dataclass(frozen=True)
class SweepFile(JobConfig):
    """The file of a sweep: the settings of its jobs, and the variants to run.

    Args:
        stages: Slices of a network that is stitched to itself.
        src_stages: Slices of the network with the first blocks.
        dest_stages: Slices of the network with the last blocks.
        gaps: The slices to leave out; by default those of the published sweeps.
        stitchers: The names of the stitchers to try; by default those of the published sweeps.
    """

    stages: tuple[WrittenPart, ...] | None = Field(default=None, min_length=1)
    src_stages: tuple[WrittenPart, ...] | None = Field(default=None, min_length=1)
    dest_stages: tuple[WrittenPart, ...] | None = Field(default=None, min_length=1)
    gaps: tuple[Gap, ...] | None = Field(default=None, min_length=1)
    stitchers: tuple[StrictStr, ...] | None = Field(default=None, min_length=1)


def sweep_schema() -> JsonSchemaValue:
    """The JSON Schema of a sweep's file."""
    schema = json_schema(SweepFile)
    for key in ("model", "assembly"):  # the slices replace them
        del schema["properties"][key]
    return schema


DEFAULT_GAPS = tuple(
    Gap((first, last), num_downsamples)
    for first, last, num_downsamples in (
        (1, 1, 0), (1, 2, 1), (1, 4, 2), (1, 6, 3), (3, 3, 0), (3, 4, 1), (3, 6, 2), (5, 5, 0), (5, 6, 1)
    )
)  # fmt: skip
"""The nine of the published sweeps, for networks of eight slices."""


@dataclasses.dataclass(frozen=True)
class CutNetwork:
    """A network in slices.

    Args:
        slices: Its parts.
        shapes: Input and output shapes of each.
    """

    slices: tuple[PartSpec, ...]
    shapes: tuple[SliceShapes, ...]

    @classmethod
    def create(cls, slices: Sequence[PartSpec], image_size: int) -> CutNetwork:
        """The network of these slices, which is built and run once, without weights and memory."""
        return cls(tuple(slices), slice_shapes(slices, image_size))


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """A sweep: two networks in slices, the gaps between them and the stitchers to try.

    Args:
        name: The stem of its file, with which the names of its jobs' folders begin.
        source: Slices of the network with the first blocks: a stem, the rest of its stage, then alternately a
            down-sampling slice and the rest of its stage.
        destination: Slices of the network with the last blocks, in the same order.
        gaps: The slices to leave out.
        stitchers: The stitchers to try in each gap.
        job: All other keys of the file, for every job.
    """

    name: str
    source: CutNetwork
    destination: CutNetwork
    gaps: tuple[Gap, ...] = DEFAULT_GAPS
    stitchers: tuple[str, ...] = DEFAULT_STITCHERS
    job: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, **changes: object) -> SweepConfig:
        """The sweep in a file.

        Args:
            path: The file.
            changes: Settings of its jobs that replace the file's, by key, including those of `train_config`.

        Raises:
            InputError: If the file cannot be used; the message begins with the file, the line and the key.
        """
        content = override(read_settings_file(path), changes)
        with naming(path):
            return cls.parse(content, Path(path).stem)

    @classmethod
    def parse(cls, content: Mapping[str, object], name: str) -> SweepConfig:
        """The sweep described by the content of a file."""
        if ("stages" in content) == ("src_stages" in content or "dest_stages" in content):
            raise InputError("a sweep has either stages, or src_stages and dest_stages; set one of the two")
        keys = ("stages",) if "stages" in content else ("src_stages", "dest_stages")
        file = parse(SweepFile, content)
        slices = [_slices(getattr(file, key), key) for key in keys]
        others = {key: value for key, value in content.items() if key not in SWEEP_KEYS}
        job = JobConfig.parse({"assembly": [{spec.name: spec.arguments} for spec in slices[0]], **others})
        image_size = job.train_config.resolved_tasks[0].data_preprocessing.image_size
        networks = [CutNetwork.create(specs, image_size) for specs in slices]
        stitchers = file.stitchers or DEFAULT_STITCHERS
        for number, stitcher in enumerate(stitchers):
            if stitcher not in (FINETUNE, *STITCHERS):
                raise InputError(f"stitchers[{number}]: {unknown('stitcher', stitcher, (FINETUNE, *STITCHERS))}")
        config = cls(name, networks[0], networks[-1], file.gaps or DEFAULT_GAPS, stitchers, others)
        config._check_gaps()
        _check_twice("gaps", [f"[{gap}]" for gap in config.gaps])
        _check_twice("stitchers", config.stitchers)
        return config

    def _check_gaps(self) -> None:
        for number, gap in enumerate(self.gaps):
            last = len(self.source.slices) - 1, len(self.destination.slices) - 1
            if gap.first > last[0] or gap.last >= last[1]:
                raise InputError(
                    f"gaps[{number}]: [{gap}] leaves no slice of a network; the source has slices 0 to {last[0]}, the "
                    f"destination 0 to {last[1]}"
                )

    @property
    def train(self) -> Mapping[str, object]:
        """The training settings in the file; all others keep their defaults."""
        train = self.job["train_config"]
        assert isinstance(train, Mapping), "the file was checked"
        return train

    @property
    def seed(self) -> int | None:
        """The seed of its jobs, which is part of the names of their results; None if the file has none."""
        seed = self.train.get("seed")
        assert isinstance(seed, int | None), "the file was checked"
        return seed


def _slices(parts: Sequence[object] | None, key: str) -> list[PartSpec]:
    if parts is None:
        raise InputError(f"{key} is missing; a sweep has either stages, or src_stages and dest_stages")
    return [PartSpec.parse(part, f"{key}[{number}]") for number, part in enumerate(parts)]


def _check_twice(key: str, names: Sequence[str]) -> None:
    """Refuse duplicates: their jobs would share a folder."""
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError(
                f"{key}[{number}]: {name} is the same as {key}[{names.index(name)}]; remove one of the two"
            )
