"""Settings of sweeps that need no torch, which takes seconds to import."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictStr
from pydantic.dataclasses import dataclass as schema

from stitchkit.assembly.config.settings import Metric
from stitchkit.errors import InputError
from stitchkit.settings.fields import Copies, Count, Seed, Times, Workers
from stitchkit.settings.recipe import flag_of
from stitchkit.settings.schema import LocalPath, Settings, parse


def _check_name(value: str) -> str:
    # A file may come from a stranger, and these go into a script for a shell.
    if not re.fullmatch(r"\w[\w.+,-]*(/\w[\w.+-]*)*", value):
        raise InputError(f"it is {value!r}; only letters, digits and . + , - / may be in it")
    return value


_Name = Annotated[StrictStr, AfterValidator(_check_name)]


@schema(frozen=True)
class Resources(Settings):
    """Resources that Slurm gives to each job of a sweep.

    Args:
        partition: Slurm's partition.
        gpus: GPUs of a job, each with its own process.
        cpus: CPUs of each process.
        mem_gb: Memory in gigabytes of 1024 MB.
        hours: Time limit in hours, after which a job is requeued and resumes.
        modules: Environment modules, which `module load` loads before the job starts.
    """

    partition: _Name | None = None
    gpus: Copies = 1
    cpus: Times | None = None
    mem_gb: Annotated[float, Field(strict=True, ge=0.1, le=1e6)] | None = None
    hours: float = Field(default=24.0, strict=True, ge=0.1, le=1e5)
    modules: tuple[_Name, ...] = ()


@schema(frozen=True, kw_only=True)
class Place(Resources):
    """The place where the jobs of a sweep run, by the flags of `stitchkit sweep`.

    Args:
        cluster: This machine, or Slurm.
        jobs: Number of jobs at a time; with Slurm, by default as many as there is room for.
        detach: Submit the jobs to Slurm, without waiting for any.
        setup: Shell commands before a job of Slurm starts.
        sbatch: Further options for sbatch, `KEY=VALUE`.
        poll: Seconds between two questions to Slurm's controller, which answers all users of a cluster.
    """

    cluster: Literal["local", "slurm"] = "local"
    jobs: Count | None = None
    detach: StrictBool = False
    setup: tuple[StrictStr, ...] = ()
    sbatch: tuple[StrictStr, ...] = ()
    poll: float = Field(default=30.0, strict=True, ge=30, le=86_400)


def read_place(flags: Mapping[str, object], resources: Resources | None = None) -> Place:
    """The place that flags say, which take precedence over the resources in the file of a sweep."""
    place = parse(Place, {**vars(resources or Resources()), **flags}, name=flag_of)
    on_slurm = next((name for name in flags if name not in ("cluster", "jobs", "gpus")), None)
    if place.cluster == "local" and on_slurm:
        raise InputError(f"{flag_of(on_slurm)} is for Slurm; add --cluster slurm, or omit it")
    return place


def _check_different(values: tuple[object, ...]) -> tuple[object, ...]:
    names = [str(value) for value in values]
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise InputError(f"it has {twice} twice; remove one of the two")
    return values


Different = AfterValidator(_check_different)
"""Refuses a list with two values of one name, whose jobs would share a folder."""


Seeds = Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000), Different]


@schema(frozen=True)
class Repeats(Settings):
    """How often a sweep runs its jobs, by flags of `stitchkit sweep`.

    Args:
        seeds: Seeds of replicates.
        run_cap: Number of trials of a search.
    """

    seeds: Seeds | None = None
    run_cap: Count | None = None


@schema(frozen=True, kw_only=True)
class CrossFile(Settings):
    """A sweep of heads by encoders: the fine-tuned jobs, and settings of their tests in place of their own.

    Args:
        ft_configs: The settings files of the jobs, each beside its checkpoint.
        seed: Seed of the images that `max_batches` chooses.
        data_path: Folder of the data sets.
        max_batches: Number of random batches of the data used for tests.
        metrics: Figures of merit.
        device: `cpu`, `cuda` or `cuda:N`.
        workers: Loader processes of each rank, at most one per core.
        deterministic: Use only deterministic algorithms.
        slurm: The resources of each job with `--cluster slurm`, unless flags say otherwise.
    """

    ft_configs: tuple[LocalPath, ...] = Field(min_length=1)
    seed: Seed | None = None
    data_path: LocalPath | None = None
    max_batches: Count | None = None
    metrics: tuple[Metric, ...] | None = None
    device: StrictStr | None = None
    workers: Workers | None = None
    deterministic: StrictBool | None = None
    slurm: Resources = Field(default_factory=Resources)
