"""Sweeps over gaps: every gap bridged by every stitcher, one job each.

Source: the "across scales" sweeps of "Bridging Large Gaps in Neural Network Representations with Model Stitching".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, StrictStr
from pydantic.dataclasses import dataclass

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.job_settings import SWEEP_KEYS, read_job
from stitchkit.assembly.parts.registry import WrittenPart
from stitchkit.assembly.parts.spec import PartSpec
from stitchkit.assembly.sweep.kinds.shapes import SweepSlice, find_shapes
from stitchkit.assembly.sweep.kinds.stitchers import DEFAULT_STITCHERS, FINETUNE, STITCHERS
from stitchkit.assembly.sweep.plan import JobSweepFile, all_seeds
from stitchkit.assembly.sweep.settings import Resources
from stitchkit.assembly.train.check import check_training
from stitchkit.errors import InputError, unknown
from stitchkit.settings.fields import Natural
from stitchkit.settings.files import naming
from stitchkit.settings.schema import Settings, parse


@dataclass(frozen=True)
class Gap(Settings):
    """Slices that are left out between two networks.

    Args:
        blocks_to_drop: Numbers of the first and the last slice left out; the source's slices before them and the
            destination's after them stay.
        num_downsamples: Number of times that the slices left out halve the map.
    """

    blocks_to_drop: tuple[Natural, Natural]
    num_downsamples: int = Field(strict=True, ge=0, le=32)

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
class GapFile(JobSweepFile):
    """A sweep over gaps: the settings of its jobs, and the gaps and stitchers to run.

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


REPLACED = ("model", "assembly")
"""Keys of a job in whose place a sweep has slices."""


DEFAULT_GAPS = tuple(
    Gap((first, last), num_downsamples)
    for first, last, num_downsamples in (
        (1, 1, 0), (1, 2, 1), (1, 4, 2), (1, 6, 3), (3, 3, 0), (3, 4, 1), (3, 6, 2), (5, 5, 0), (5, 6, 1)
    )
)  # fmt: skip
"""The nine of the published sweeps, for networks of eight slices."""


@dataclasses.dataclass(frozen=True)
class GapSweep:
    """A sweep over gaps: two networks in slices, the gaps between them and the stitchers to try.

    Args:
        name: The stem of its file, with which the names of its jobs' folders begin.
        source: Slices of the network with the first blocks: a stem, the rest of its stage, then alternately a
            down-sampling slice and the rest of its stage.
        destination: Slices of the network with the last blocks, in the same order.
        gaps: The slices to leave out.
        stitchers: The stitchers to try in each gap.
        job: All other keys of the file, for every job.
        seeds: The seeds of each job.
        resources: The resources of each job with `--cluster slurm`.
    """

    name: str
    source: tuple[SweepSlice, ...]
    destination: tuple[SweepSlice, ...]
    gaps: tuple[Gap, ...]
    stitchers: tuple[str, ...]
    job: Mapping[str, Any]
    seeds: tuple[int | None, ...]
    resources: Resources

    @classmethod
    def load(cls, path: str | Path, **changes: object) -> GapSweep:
        """The sweep in a file, with `changes` to the settings of its jobs, as in `JobConfig.load`."""
        content = read_job(path, changes)
        with naming(path):
            # Left out and null mean the same, as for all keys whose default is None.
            keys = [key for key in ("stages", "src_stages", "dest_stages") if content.get(key) is not None]
            if keys not in (["stages"], ["src_stages", "dest_stages"]):
                raise InputError("a sweep has either stages, or src_stages and dest_stages; set one of the two")
            file = parse(GapFile, content)
            if wrong := next((key for key in REPLACED if key in content), None):
                raise InputError(f"{wrong}: a sweep has slices in place of a network; remove it")
            networks = [
                [PartSpec.parse(part, f"{key}[{number}]") for number, part in enumerate(getattr(file, key))]
                for key in keys
            ]
            job = {key: value for key, value in content.items() if key not in SWEEP_KEYS}
            # The settings of all jobs are checked now, with a network in place of theirs, which are not known yet.
            whole = JobConfig.parse({"assembly": [{part.name: part.arguments} for part in networks[0]], **job})
            check_training(whole)
            image_size = whole.train_config.resolved_tasks[0].data_preprocessing.size
            cut = [find_shapes(parts, image_size) for parts in networks]
            gaps, stitchers = file.gaps or DEFAULT_GAPS, file.stitchers or DEFAULT_STITCHERS
            return cls(Path(path).stem, cut[0], cut[-1], gaps, stitchers, job, all_seeds(file, job), file.slurm)

    def __post_init__(self) -> None:
        for number, stitcher in enumerate(self.stitchers):
            if stitcher not in (FINETUNE, *STITCHERS):
                raise InputError(f"stitchers[{number}]: {unknown('stitcher', stitcher, (FINETUNE, *STITCHERS))}")
        # After the source's slices up to `first` come the destination's behind `last`; neither side may be empty.
        last = len(self.source) - 1, len(self.destination) - 1
        for number, gap in enumerate(self.gaps):
            if gap.first > last[0] or gap.last >= last[1]:
                raise InputError(
                    f"gaps[{number}]: [{gap}] leaves no slice of a network; the source has slices 0 to {last[0]}, the "
                    f"destination 0 to {last[1]}"
                )
        # Jobs of duplicates would share a folder.
        for key, names in (("gaps", [f"[{gap}]" for gap in self.gaps]), ("stitchers", [*self.stitchers])):
            for number, name in enumerate(names):
                if name in names[:number]:
                    raise InputError(
                        f"{key}[{number}]: {name} is the same as {key}[{names.index(name)}]; remove one of the two"
                    )
