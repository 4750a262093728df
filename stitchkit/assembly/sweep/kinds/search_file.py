"""The file of a search: a job and the hyper-parameters to try, in the format of sweeps of Weights & Biases."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic.dataclasses import dataclass as schema

from stitchkit.assembly.sweep.settings import Resources, Seeds
from stitchkit.errors import InputError
from stitchkit.settings.fields import Count, Number, Whole
from stitchkit.settings.schema import LocalPath, Settings

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = StrictInt | StrictFloat | StrictStr | StrictBool


@schema(frozen=True)
class Goal(Settings):
    """What a search improves.

    Args:
        name: The end of a column's name in the results, such as `Test Accuracy`, with or without `Avg` before it. The
            search improves the mean of all such columns in the last epoch, over all seeds.
        goal: Whether it should be high or low.
    """

    name: StrictStr
    goal: Literal["maximize", "minimize"] = "minimize"


@schema(frozen=True)
class Range(Settings):
    """The values of a hyper-parameter.

    Args:
        value: A single value.
        values: A list of values.
        min: The lowest value.
        max: The highest value.
        distribution: How values between `min` and `max` are drawn: evenly (`uniform`, `int_uniform`), or evenly on a
            logarithmic scale (`log_uniform_values`).
    """

    value: Value | None = None
    values: tuple[Value, ...] | None = Field(default=None, min_length=1)
    min: Whole | Number | None = None
    max: Whole | Number | None = None
    distribution: Literal["constant", "categorical", "int_uniform", "uniform", "log_uniform_values"] | None = None

    def __post_init__(self) -> None:
        given = [key for key in ("value", "values", "min", "max") if getattr(self, key) is not None]
        if given not in (["value"], ["values"], ["min", "max"]):
            raise InputError(f"it has {' and '.join(given) or 'no values'}; set value, values, or min and max")
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


@schema(frozen=True, kw_only=True)
class SearchFile(Settings):
    """A search: the job, and the hyper-parameters to try, as in a sweep of Weights & Biases.

    Args:
        job: The file of the job, or of a sweep over data sets, beside this one.
        program: The published program, which has no effect.
        command: Its command, whose `--config` names the job if `job` does not.
        method: `bayes` learns from the results so far, by optuna's tree of Parzen estimators; `random` draws; `grid`
            tries all.
        metric: What to improve.
        parameters: The values of each key of `train_config`, or of its `optimizer_args`.
        run_cap: Number of trials; by default 10, or all of a grid.
        seeds: Seeds of replicates; every job of every trial runs once with each.
        name: Name of the search in Weights & Biases, which has no effect.
        slurm: The resources of each job with `--cluster slurm`, unless flags say otherwise.
    """

    method: Literal["bayes", "random", "grid"]
    metric: Goal
    parameters: dict[str, Range] = Field(min_length=1)
    job: LocalPath | None = None
    program: StrictStr | None = None
    command: tuple[StrictStr, ...] = ()
    run_cap: Count | None = None
    seeds: Seeds | None = None
    name: StrictStr | None = None
    slurm: Resources = Field(default_factory=Resources)
