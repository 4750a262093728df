"""The plan of a sweep: its jobs; what all kinds of sweeps share; and sweeps over data sets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass as schema

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.job_settings import STAND_IN, SWEEP_KEYS, override, read_job, refuse_misplaced
from stitchkit.assembly.parts.network import check_network
from stitchkit.assembly.sweep.settings import ON_SLURM, Resources, Seeds
from stitchkit.assembly.train.job import check_training
from stitchkit.assembly.train.result import update_metadata
from stitchkit.display import aligned
from stitchkit.errors import InputError
from stitchkit.files import own_folder, write_text
from stitchkit.settings.fields import entry
from stitchkit.settings.files import naming, settings_text
from stitchkit.settings.schema import DatasetName, parse


@schema(frozen=True)
class JobSweepFile(JobConfig):
    """The file of a sweep whose jobs have settings in common."""

    seeds: Seeds | None = entry(None, "Seeds of replicates; every job runs once with each.")
    slurm: Resources = ON_SLURM


def all_seeds(file: JobSweepFile, job: Mapping[str, Any]) -> tuple[int | None, ...]:
    """The seeds of each job of a sweep; None if its file names none."""
    return file.seeds or (job["train_config"].get("seed"),)


@dataclass(frozen=True)
class PlannedJob:
    """One job of a sweep, or one that does not apply."""

    name: str  # name of its folder
    metadata: dict[str, object]  # the metadata in its folder, with the sweep's name as `arch`
    config: dict[str, object]  # the configuration of the job; empty if it does not apply
    columns: Mapping[str, str] = field(default_factory=dict)  # what the plan says of it, by the heads of its columns
    note: str = ""  # what is special about it; the reason if it does not apply

    @property
    def applies(self) -> bool:
        """Whether there is such a job."""
        return bool(self.config)

    @cached_property
    def parsed(self) -> JobConfig:
        """The checked configuration of a job that applies."""
        return JobConfig.parse(self.config)

    def write(self, folder: Path) -> Path:
        """Create its folder in `folder`, with `config.yml` and `metadata.yml`, which keeps facts that a run added."""
        own = own_folder(folder / self.name)
        update_metadata(own / "metadata.yml", self.metadata)
        write_text(own / "config.yml", settings_text(self.config))
        return own


@dataclass(frozen=True)
class Sweep:
    """The jobs that one file describes.

    Args:
        seeds: The seeds of each job, which are part of the names of its results; None is a job's own.
    """

    jobs: Sequence[PlannedJob]
    seeds: tuple[int | None, ...] = (None,)
    resources: Resources = field(default_factory=Resources)  # the resources of each job with `--cluster slurm`

    def __post_init__(self) -> None:
        names = [job.name for job in self.jobs]
        if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
            raise InputError(f"two jobs would have the folder '{twice}'; remove one, or rename its data set")

    def rounds(self, folder: Path, at_once: int | None) -> Iterator[Sequence[PlannedJob]]:  # noqa: ARG002
        """The jobs to run one group after another, in the folder of the sweep: all together."""
        yield self.jobs


def choose(jobs: Sequence[PlannedJob], only: Sequence[str]) -> dict[int, PlannedJob]:
    """Jobs of a plan by their numbers, which begin at 1: all, or those that numbers or patterns of names choose."""
    numbered = dict(enumerate(jobs, 1))
    if not only:
        return numbered
    chosen: dict[int, PlannedJob] = {}
    for wanted in only:
        span = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", wanted)
        numbers = range(int(span[1]), int(span[2] or span[1]) + 1) if span else ()
        if not (matching := {n: job for n, job in numbered.items() if n in numbers or fnmatchcase(job.name, wanted)}):
            raise InputError(
                f"--only {wanted} chooses no job; the plan has the numbers 1 to {len(jobs)}, and names such as "
                f"'{jobs[-1].name}'; * in a name stands for anything"
            )
        chosen |= matching
    if not any(job.applies for job in chosen.values()):
        raise InputError(f"no job that --only chooses applies: {next(iter(chosen.values())).note}")
    return dict(sorted(chosen.items()))


def table(jobs: Mapping[int, PlannedJob]) -> str:
    """A plan as text: the number of each job, what its kind of sweep says of it, or why it does not apply."""
    heads = list(dict.fromkeys(head for job in jobs.values() for head in job.columns))
    lines = [("job", *heads, "")]
    for number, job in jobs.items():
        note = job.note if job.applies else f"does not apply: {job.note}"
        lines.append((str(number), *(job.columns.get(head, "-") for head in heads), note))
    return aligned(lines, left=range(1, len(heads) + 2))


@schema(frozen=True)
class DatasetsFile(JobSweepFile):
    """A sweep over data sets: the settings of its jobs, and the data sets."""

    datasets: tuple[DatasetName, ...] | None = Field(
        default=None,
        min_length=1,
        description=(
            "Names or folders of data sets, in place of `train_config.dataset`; without them, there is one job."
        ),
    )


def plan_datasets(path: str | Path, **changes: object) -> Sweep:
    """The same job for every data set in a file; without data sets, the job that the file describes."""
    path = Path(path)
    content = read_job(path, changes)
    with naming(path):
        refuse_misplaced(content)
        train, names = content.get("train_config"), content.get("datasets")
        if names is None:
            file = parse(DatasetsFile, content)
        elif isinstance(train, Mapping) and (train.get("dataset") or train.get("tasks")):
            raise InputError("datasets: train_config names data too; remove one of the two")
        else:
            file = parse(DatasetsFile, override(content, STAND_IN))
        job = {key: value for key, value in content.items() if key not in SWEEP_KEYS}
        stem, planned = path.stem, []
        for name in file.datasets or ():
            about: dict[str, object] = {"arch": stem, "dataset": Path(name).name}
            config = override(job, {"dataset": name})
            planned.append(PlannedJob(f"train-{stem}-{about['dataset']}", about, config, {"data set": name}))
        planned = planned or [PlannedJob(f"train-{stem}", {"arch": stem}, job, {"job": stem})]
        first = planned[0].parsed
        check_training(first)
        size = first.train_config.resolved_tasks[0].data_preprocessing.size
        # Files of weights may be missing still; they are read before the first job starts.
        check_network(first.network, num_classes=first.wanted(), input_size=(3, *size), replaced=True)
        return Sweep(planned, all_seeds(file, job), file.slurm)
