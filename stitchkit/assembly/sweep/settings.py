"""Settings of sweeps that need no torch, which takes seconds to import."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic.dataclasses import dataclass

from stitchkit.assembly.config.job_settings import check_flags, check_own
from stitchkit.assembly.config.settings import Metric, rule
from stitchkit.errors import InputError
from stitchkit.settings.fields import Copies, Count, Number, Seed, Times, Whole, Workers, entry
from stitchkit.settings.schema import LocalPath, Settings, flag_of, parse

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


# A file may come from a stranger, and these go into a script for a shell.
_is_plain = re.compile(r"\w[\w.+,-]*(/\w[\w.+-]*)*").fullmatch
_Name = Annotated[StrictStr, rule(_is_plain, "it is {}; only letters, digits and . + , - / may be in it")]


@dataclass(frozen=True)
class Resources(Settings):
    """Resources that Slurm gives to each job of a sweep."""

    partition: _Name | None = entry(None, "Slurm's partition.")
    gpus: Copies = entry(1, "GPUs of a job, each with its own process.")
    cpus: Times | None = entry(None, "CPUs of each process.")
    mem_gb: Annotated[float, Field(strict=True, ge=0.1, le=1e6)] | None = entry(None, "Memory in gigabytes of 1024 MB.")
    hours: Annotated[float, Field(strict=True, ge=0.1, le=1e5)] = entry(
        24.0, "Time limit in hours; a job is then requeued and resumes."
    )
    modules: tuple[_Name, ...] = entry((), "Environment modules, which `module load` loads before the job starts.")


ON_SLURM: Any = Field(
    default_factory=Resources,
    description="The resources of each job with `--cluster slurm`, unless flags say otherwise.",
)
"""The entry of a sweep's file with the resources of its jobs."""


@dataclass(frozen=True, kw_only=True)
class Place(Resources):
    """The place where the jobs of a sweep run, by the flags of `stitchkit sweep`."""

    cluster: Literal["local", "slurm"] = entry("local", "This machine, or Slurm.")
    jobs: Count | None = entry(None, "Number of jobs at a time; with Slurm, by default as many as there is room for.")
    detach: StrictBool = entry(False, "Submit the jobs to Slurm, without waiting for any.")
    setup: tuple[StrictStr, ...] = entry((), "Shell commands before a job of Slurm starts.")
    sbatch: tuple[StrictStr, ...] = entry((), "Further options for sbatch, `KEY=VALUE`.")
    poll: Annotated[float, Field(strict=True, ge=30, le=86_400)] = entry(
        30.0, "Seconds between two questions to Slurm's controller, which answers all users of a cluster."
    )


def read_place(flags: Mapping[str, object], resources: Resources | None = None) -> Place:
    """The place that flags say, which take precedence over the resources in the file of a sweep."""
    options = parse(Place, {**vars(resources or Resources()), **flags}, name=flag_of)
    on_slurm = next((name for name in flags if name not in ("cluster", "jobs", "gpus")), None)
    if options.cluster == "local" and on_slurm:
        raise InputError(f"{flag_of(on_slurm)} requires Slurm; add --cluster slurm, or omit it")
    return options


def _check_different(values: tuple[object, ...]) -> tuple[object, ...]:
    names = [str(value) for value in values]
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise InputError(f"it has {twice} twice; remove one of the two")
    return values


Different = AfterValidator(_check_different)
"""Refuses a list with two values of one name, whose jobs would share a folder."""


Seeds = Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000), Different]


@dataclass(frozen=True, kw_only=True)
class CrossFile(Settings):
    """A sweep of heads by encoders: the fine-tuned jobs, and settings of their tests in place of their own."""

    ft_configs: tuple[LocalPath, ...] = Field(
        min_length=1, description="The settings files of the jobs, each beside its checkpoint."
    )
    seed: Seed | None = entry(None, "Seed of the images that `max_batches` chooses.")
    data_path: LocalPath | None = entry(None, "Folder of the data sets.")
    max_batches: Count | None = entry(None, "Number of random batches of the data used for tests.")
    metrics: tuple[Metric, ...] | None = entry(None, "Figures of merit.")
    device: StrictStr | None = entry(None, "`cpu`, `cuda` or `cuda:N`.")
    workers: Workers | None = entry(None, "Loader processes of each rank, at most one per core.")
    deterministic: StrictBool | None = entry(None, "Use only deterministic algorithms.")
    slurm: Resources = ON_SLURM


Value = StrictInt | StrictFloat | StrictStr | StrictBool


@dataclass(frozen=True)
class Goal(Settings):
    """What a search improves."""

    name: StrictStr = entry(
        ...,
        "The end of a column's name in the results, such as `Test Accuracy`, with or without `Avg` before it. "
        "The search improves the mean of all such columns in the last epoch, over all seeds.",
    )
    goal: Literal["maximize", "minimize"] = entry("minimize", "Whether it should be high or low.")


@dataclass(frozen=True)
class Range(Settings):
    """The values of a hyper-parameter."""

    value: Value | None = entry(None, "A single value.")
    values: tuple[Value, ...] | None = Field(default=None, min_length=1, description="A list of values.")
    min: Whole | Number | None = entry(None, "The lowest value.")
    max: Whole | Number | None = entry(None, "The highest value.")
    distribution: Literal["constant", "categorical", "int_uniform", "uniform", "log_uniform_values"] | None = entry(
        None,
        "How values between `min` and `max` are drawn: evenly (`uniform`, `int_uniform`), or evenly on a "
        "logarithmic scale (`log_uniform_values`).",
    )

    def __post_init__(self) -> None:
        keys = [key for key in ("value", "values", "min", "max") if getattr(self, key) is not None]
        if keys not in (["value"], ["values"], ["min", "max"]):
            raise InputError(f"it has {' and '.join(keys) or 'no values'}; set value, values, or min and max")
        if self.min is not None and self.max is not None:
            lowest = 1e-300 if self.distribution == "log_uniform_values" else -math.inf
            if not lowest <= self.min < self.max:
                raise InputError(f"min is {self.min} and max {self.max}; min must be lower, and positive with log")

    @property
    def choices(self) -> tuple[Value, ...] | None:
        """All values, if they can be counted."""
        return self.values if self.value is None else (self.value,)

    def distributed(self) -> BaseDistribution:
        """The range as optuna has it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices is not None:
            return CategoricalDistribution(self.choices)
        assert self.min is not None
        assert self.max is not None
        is_log = self.distribution == "log_uniform_values"
        if isinstance(self.min, int) and isinstance(self.max, int) and self.distribution in (None, "int_uniform"):
            return IntDistribution(self.min, self.max)
        return FloatDistribution(self.min, self.max, log=is_log)


@dataclass(frozen=True, kw_only=True)
class SearchFile(Settings):
    """A search: the job, and the hyper-parameters to try, as in a sweep of Weights & Biases."""

    method: Literal["bayes", "random", "grid"] = entry(
        ...,
        "`bayes` learns from the results so far, by optuna's tree of Parzen estimators; `random` draws; "
        "`grid` tries all.",
    )
    metric: Goal = entry(..., "What to improve.")
    parameters: dict[str, Range] = Field(
        min_length=1, description="The values of each key of `train_config`, or of its `optimizer_args`."
    )
    job: LocalPath | None = entry(None, "The file of the job, or of a sweep over data sets, beside this one.")
    program: StrictStr | None = entry(None, "The published program, which has no effect.")
    command: tuple[StrictStr, ...] = entry((), "Its command, whose `--config` names the job if `job` does not.")
    run_cap: Count | None = entry(None, "Number of trials; by default 10, or all of a grid.")
    seeds: Seeds | None = entry(None, "Seeds of replicates; every job of every trial runs once with each.")
    name: StrictStr | None = entry(None, "Name of the search in Weights & Biases, which has no effect.")
    slurm: Resources = ON_SLURM


_LEAST_SEARCH = {"method": "random", "metric": {"name": "Accuracy"}, "parameters": {"lr": {"value": 1}}}
"""A search in checks of flags, which its file could have too: `seeds`, also of other sweeps, and `run_cap`."""


def check_folder(folder: str | Path) -> Path:
    """The folder of a sweep, which must exist."""
    if not Path(folder).is_dir():
        raise InputError(f"folder '{folder}' does not exist; name the output folder (-o) of a sweep")
    return Path(folder)


def check_sweep(flags: argparse.Namespace) -> None:
    """Check the flags of `stitchkit sweep`, and with `--report` the folder."""
    settings = vars(flags)
    if flags.report is None:
        read_place({field.name: settings[field.name] for field in fields(Place) if field.name in settings})
        check_flags(settings)
        check_own(SearchFile, _LEAST_SEARCH, settings)
    else:  # the sweep may still run
        known = ("output", "cluster", "report", "format")
        if unused := [key for key, value in settings.items() if value and key not in known]:
            raise InputError(
                f"{flag_of(unused[0])} has no effect with --report, which runs no job; remove one of the two"
            )
        check_folder(flags.report)
