"""Searches: trials of a job with other hyper-parameters, chosen by optuna."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from stitchkit.assembly.config.job_settings import JobSettings, override
from stitchkit.assembly.config.settings import TrainConfig
from stitchkit.assembly.sweep.plan import PlannedJob, Sweep, plan_datasets
from stitchkit.assembly.sweep.settings import SearchFile, Value
from stitchkit.assembly.sweep.worker import SweepJob
from stitchkit.assembly.train.job import check_training
from stitchkit.assembly.train.metrics import planned_columns
from stitchkit.assembly.train.result import read_figures
from stitchkit.engine.lock import locked
from stitchkit.errors import InputError
from stitchkit.files import own_folder, refuse_link, replacing
from stitchkit.optional import check_installed
from stitchkit.settings.files import json_lines, naming, read_settings_file
from stitchkit.settings.schema import parse

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_logger = logging.getLogger(__name__)

_TRIALS = 10  # trials of a search whose file does not say how many, unless it is a grid
_MOST_TRIALS = 1000
_RANDOM_TRIALS = 3
"""Random trials before `bayes` learns from results; with optuna's own 10, a search of 10 trials would not learn."""


def plan_search(path: str | Path, **changes: object) -> HyperSearch:
    """The search in a file, with `changes` to the settings of its jobs."""
    path = Path(path)
    own = {key: changes.pop(key) for key in ("run_cap", "seeds") if key in changes}
    with naming(path):
        file = parse(SearchFile, read_settings_file(path) | own)
        check_installed(["optuna"], "jobs", "a search")
        ranges = file.parameters.items()
        if file.method == "grid" and (wide := next((key for key, each in ranges if each.choices is None), None)):
            raise InputError(f"parameters.{wide}: a grid needs values, not min and max; list them, or choose random")
        size = math.prod(len(each.choices or ()) for _, each in ranges) if file.method == "grid" else 0
        if max(size, file.run_cap or 0) > _MOST_TRIALS:
            raise InputError(f"a search has at most {_MOST_TRIALS} trials; lower run_cap, or list fewer values")
        if "seed" in file.parameters:
            raise InputError("parameters.seed: all trials run with the same seeds; move it to seeds")
        job = Path(file.job) if file.job else _job_of(file.command)
        ignored = [key for key in ("name", "program") if getattr(file, key)]
        ignored += [word for word in file.command if word.startswith("--") and not word.startswith("--config=")]
        if ignored:
            instead = "a search is called like its file; set --cluster, --gpus and --setup for its jobs"
            _logger.warning("'%s': these have no effect: %s; %s", path, ", ".join(ignored), instead)
    base = plan_datasets(job, **changes)  # errors name the job's file
    if "dataset" in file.parameters and "dataset" in base.jobs[0].metadata:
        raise InputError(f"'{path}': parameters.dataset: '{job}' names data sets too; remove one of the two")
    return HyperSearch(seeds=file.seeds or base.seeds, resources=file.slurm, path=path, file=file, base=base.jobs)


def _job_of(command: Sequence[str]) -> Path:
    """The job that a command of Weights & Biases names: `--config=${envvar:CONFIG}`, from the environment."""
    for word in command:
        if word.startswith("--config="):
            value = word.removeprefix("--config=")
            if (variable := re.fullmatch(r"\$\{envvar:(\w+)\}", value)) is None:
                return Path(value)
            if not os.environ.get(variable[1]):
                raise InputError(f"command: the variable {variable[1]} names no job; set it, or job: FILE")
            return Path(os.environ[variable[1]])
    raise InputError("job is missing; name the file of the job")


def _chosen(metric: str, columns: Sequence[str]) -> list[str]:
    """The columns of a result that a metric names by their end; it may begin with `Avg`."""
    end = metric.removeprefix("Avg ")
    if not (names := [name for name in columns if name == end or name.endswith(f"/{end}")]):
        raise InputError(f"metric.name: no column of the results ends with '{end}'; they are {', '.join(columns)}")
    return names


@dataclass(frozen=True, kw_only=True)
class HyperSearch(Sweep):
    """Trials of the jobs of a file; later ones may depend on the results of earlier ones."""

    jobs: Sequence[PlannedJob] = field(init=False)
    path: Path
    file: SearchFile
    base: Sequence[PlannedJob]

    def __post_init__(self) -> None:
        first = self._ask(self._study(None), 1 if self.file.method == "bayes" else self._num_trials)
        object.__setattr__(self, "jobs", self._checked(first))

    def rounds(self, folder: Path, at_once: int | None) -> Iterator[Sequence[PlannedJob]]:
        """The jobs of the trials that have no result, and when these have ended, those of the next trials.

        Trials that failed before are in the first round, where they are listed, or run again on request.
        """
        if self.file.method == "bayes" and at_once is None:
            _logger.info("bayes runs one trial at a time; --jobs N runs N")
        with locked(own_folder(folder) / f".{self.path.stem}.lock"):
            study = self._study(folder)
            unfinished, failed = self._tell(study, folder)
            while True:
                count = (at_once or 1) - len(unfinished) if self.file.method == "bayes" else self._num_trials
                waiting = sorted([*unfinished, *failed, *self._ask(study, count)], key=lambda trial: trial.number)
                if not waiting:
                    break
                yield self._checked(waiting)
                unfinished, failed = self._tell(study, folder)[0], []
                if unfinished:  # submitted, or interrupted: the command continues when it is repeated
                    break
            self._report(study, folder)

    @property
    def _num_trials(self) -> int:
        most = len(self._grid()) or self.file.run_cap or _TRIALS
        return min(self.file.run_cap or most, most)

    def _grid(self) -> list[dict[str, Value]]:
        """All trials of a grid, in the order of the file; none otherwise."""
        if self.file.method != "grid":
            return []
        choices = [each.choices or () for each in self.file.parameters.values()]
        return [dict(zip(self.file.parameters, values, strict=True)) for values in product(*choices)]

    def _study(self, folder: Path | None) -> Study:
        """The trials so far, from the journal in the folder of the search."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        goal, journal = self.file.metric.goal, folder and folder / f"{self.path.stem}.journal"
        if journal is not None:
            refuse_link(journal)
            if journal.exists():  # optuna would append to an unfinished line, and could never read the file again
                json_lines(journal, f"'{journal}', the journal of the search", "move it away", cuts=True)
        try:
            storage = JournalStorage(JournalFileBackend(str(journal))) if journal else None
            study = optuna.create_study(storage=storage, study_name=self.path.stem, direction=goal, load_if_exists=True)
            before = study.direction.name.lower()
        except Exception as error:  # optuna raises many types, AssertionError too
            raise InputError(f"'{journal}', the journal of the search, is damaged: {error}; move it away") from error
        if before != goal:
            raise InputError(f"metric.goal is {goal}, but the search in '{folder}' has {before}; choose another -o")
        for params in self._grid()[len(study.trials) :]:
            study.enqueue_trial(dict(params))
        return study

    def _ask(self, study: Study, count: int) -> list[FrozenTrial]:
        """Begin a number of further trials, or as many as are left."""
        from optuna.samplers import RandomSampler, TPESampler
        from optuna.trial import TrialState

        ranges = {key: each.distributed() for key, each in self.file.parameters.items()}
        first = len(study.trials) - len(study.get_trials(states=[TrialState.WAITING]))
        asked = []
        for begun in range(first, min(first + count, self._num_trials)):
            # Each trial has its own seed, so that a search that was interrupted tries the same.
            learns = self.file.method == "bayes"
            study.sampler = TPESampler(seed=begun, n_startup_trials=_RANDOM_TRIALS) if learns else RandomSampler(begun)
            try:
                asked.append(study.ask(ranges).number)
            except ValueError as error:
                raise InputError(f"parameters: the search began with others ({error}); choose another -o") from error
        trials = study.trials  # a copy of all
        return [trials[number] for number in asked]

    def _checked(self, trials: Sequence[FrozenTrial]) -> list[PlannedJob]:
        """The jobs of trials that are about to begin, whose values fit a training that will have the figure."""
        jobs = [job for trial in trials for job in self._jobs(trial)]
        with naming(self.path):
            for job in jobs:
                check_training(job.parsed)
                _chosen(self.file.metric.name, planned_columns(job.parsed))
        return jobs

    def _jobs(self, trial: FrozenTrial) -> list[PlannedJob]:
        known = {item.name for kind in (TrainConfig, JobSettings) for item in fields(kind)}
        changes = {key: value for key, value in trial.params.items() if key in known}
        changes["optimizer_args"] = {key: value for key, value in trial.params.items() if key not in known}
        words = {key: str(value) for key, value in trial.params.items()}
        # So that they have other columns in a report than the figures of the job, such as its rate in an epoch.
        tried = {f"param/{key}": value for key, value in trial.params.items()}
        return [
            replace(
                job,
                name=f"trial-{trial.number}-{job.name.removeprefix('train-')}",
                config=override(job.config, changes),
                metadata={**job.metadata, "arch": self.path.stem, "trial": trial.number, **tried},
                columns={"trial": str(trial.number), **words, **job.columns},
            )
            for job in self.base
        ]

    def _tell(self, study: Study, folder: Path) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Note the results of trials whose jobs are all done: the mean of the metric in their last epochs.

        Return the unfinished trials, and the failed ones.

        optuna does not learn of failures, because it lets no trial that has ended run again.
        """
        from optuna.trial import TrialState

        unfinished, failed = [], []
        for trial in study.get_trials(states=[TrialState.RUNNING]):
            runs = [SweepJob(folder / job.name, seed) for job in self._jobs(trial) for seed in self.seeds]
            if any(run.state == "failed" for run in runs):
                failed.append(trial)
            elif all(run.state == "done" for run in runs):
                last = [read_figures(run.result.with_suffix(".csv")).iloc[-1] for run in runs]
                figures = [float(row[_chosen(self.file.metric.name, row.index)].mean()) for row in last]
                study.tell(trial.number, sum(figures) / len(figures))
            else:
                unfinished.append(trial)
        return unfinished, failed

    def _report(self, study: Study, folder: Path) -> None:
        import pandas as pd
        from optuna.trial import TrialState

        failed = {trial.number for trial in self._tell(study, folder)[1]}
        rows = [
            {"trial": trial.number, "state": "failed" if trial.number in failed else trial.state.name.lower(),
             **trial.params, self.file.metric.name: trial.value}
            for trial in study.get_trials() if trial.state is not TrialState.WAITING
        ]  # fmt: skip
        with replacing(folder / f"{self.path.stem}-trials.csv") as draft:
            pd.DataFrame(rows).to_csv(draft, index=False)
        if study.get_trials(states=[TrialState.COMPLETE]):
            best = study.best_trial
            params = ", ".join(f"{key} {value}" for key, value in best.params.items())
            _logger.info("best is trial %d, %s %.4g: %s", best.number, self.file.metric.name, best.value, params)
