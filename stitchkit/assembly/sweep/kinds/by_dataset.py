"""Sweeps over data sets: one job for each, or a single job, which several seeds repeat.

Source: the multi-dataset training and the replicates of "Bridging Large Gaps in Neural Network Representations with
Model Stitching".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.job_settings import STAND_IN, SWEEP_KEYS, override, read_job
from stitchkit.assembly.parts.network import check_network
from stitchkit.assembly.sweep.plan import JobSweepFile, PlannedJob, Sweep, all_seeds
from stitchkit.assembly.train.check import check_training
from stitchkit.errors import InputError
from stitchkit.settings.files import naming
from stitchkit.settings.schema import DatasetName, parse


@dataclass(frozen=True)
class DatasetsFile(JobSweepFile):
    """A sweep over data sets: the settings of its jobs, and the data sets.

    Args:
        datasets: Names or folders of data sets, in place of `train_config.dataset`; without them, there is one job.
    """

    datasets: tuple[DatasetName, ...] | None = Field(default=None, min_length=1)


def plan_datasets(path: str | Path, **changes: object) -> Sweep:
    """The same job for every data set in a file; without data sets, the job that the file describes."""
    path = Path(path)
    content = read_job(path, changes)
    with naming(path):
        train, names = content.get("train_config"), content.get("datasets")
        if names is None:
            file = parse(DatasetsFile, content)
        elif isinstance(train, Mapping) and (train.get("dataset") or train.get("tasks")):
            raise InputError("datasets: train_config names data too; remove one of the two")
        else:
            file = parse(DatasetsFile, override(content, STAND_IN))
        job = {key: value for key, value in content.items() if key not in SWEEP_KEYS}
        planned = [_planned(path.stem, job, name) for name in file.datasets or (None,)]
        _check(planned[0].parsed)
        return Sweep(planned, all_seeds(file, job), file.slurm)


def _planned(name: str, job: Mapping[str, Any], dataset: str | None) -> PlannedJob:
    if dataset is None:
        return PlannedJob(f"train-{name}", {"arch": name}, {**job}, {"job": name})
    about = {"arch": name, "dataset": Path(dataset).name}
    return PlannedJob(
        f"train-{name}-{about['dataset']}", {**about}, override(job, {"dataset": dataset}), {"data set": dataset}
    )


def _check(config: JobConfig) -> None:
    """Check what the jobs share: their training and their network."""
    check_training(config)
    size = config.train_config.resolved_tasks[0].data_preprocessing.size
    # Files of weights may be missing still; they are read before the first job starts.
    check_network(config.network, num_classes=config.wanted(), input_size=(3, *size), replaced=True)
