"""What is stopped, killed and starved in the tests of faults: an SN-Net and a job, by one body of tests."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stitchkit.engine.checkpoint_files import CheckpointFiles
from tests.jobs import job_config, write_job
from tests.support import FLAGS, write_config

# Everything that is random or has a state is on.
BUSY = ["--mixup", "0.8", "--reprob", "0.3", "--aa", "rand-m5", "--drop-path", "0.2"]
BUSY += ["--model-ema", "--sched-on-updates", "--smoothing", "0.1"]


@dataclass(frozen=True)
class Subject:
    """Something that trains, in eight steps an epoch.

    Args:
        name: Of the command.
        start: Gives the command from the images and the folder of all runs, without the run's name.
        place: Gives the flags that name the run, from the folder of all runs and the name.
        judge: The flag of a run that judges and trains nothing.
        files: The checkpoints of a run's folder.
        states: What of a checkpoint must be the same where runs end the same.
        tables: Likewise, of the tables beside it.
    """

    name: str
    start: Callable[[Path, Path], list[object]]
    place: Callable[[Path, str], list[object]]
    judge: str
    files: Callable[[Path], CheckpointFiles]
    states: tuple[str, ...]
    tables: tuple[str, ...]

    def content(self, folder: Path, which: int = 0) -> dict[str, Any]:
        """What a checkpoint of a run holds; by default the newest."""
        found: dict[str, Any] = torch.load(self.files(folder).candidates()[which], weights_only=True)
        return found

    def assert_same_end(self, one: Path, other: Path) -> None:
        """Check that two runs ended bitwise equal, except in the time they took."""
        first, second = self.content(one), self.content(other)
        for name in self.states:
            assert (name in first) == (name in second), name
            assert name not in first or equal(first[name], second[name]), name
        for name in self.tables:
            assert (one / name).exists() == (other / name).exists(), name
            assert not (one / name).exists() or _figures(one / name) == _figures(other / name), name


def equal(one: Any, other: Any) -> bool:
    """Whether two nested states are the same, bit by bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def _figures(path: Path) -> list[dict[str, str]]:
    """The rows of a table without times and memory."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if not key.startswith(("Time/", "Proc "))} for row in rows]


def _train(images: Path, folder: Path) -> list[object]:
    config = folder / "pico.json"
    if not config.exists():
        write_config(config)
    return ["train", images, "--stitch_config", config, *FLAGS, *BUSY, "--output", folder]


def _job(images: Path, folder: Path) -> list[object]:
    schedule = {"lr_scheduler": "ExponentialLR", "lr_scheduler_args": {"gamma": 0.9, "cadence": "steps"}}
    images_as = {"data_augmentation": True, "data_preprocessing": {"image_size": 32}}
    path = write_job(folder, job_config(images, epochs=2, batch_size=8, **images_as, **schedule))
    return ["job", "-c", path, "--no-pretrained", "--save-checkpoints", "--model-ema", "--unfrozen"]


def _snnet_files(folder: Path) -> CheckpointFiles:
    from stitchkit.training.checkpoint import Checkpoints

    return Checkpoints(folder, keep=1)


def _job_files(folder: Path) -> CheckpointFiles:
    from stitchkit.assembly.train.checkpoint import JobCheckpoints

    return JobCheckpoints(folder)


SUBJECTS = {
    "SN-Net": Subject(
        "train", _train, lambda folder, name: ["--experiment", name], "--eval", _snnet_files,
        ("state_dict", "state_dict_ema", "optimizer", "history", "epoch"), ("summary.csv", "losses.csv"),
    ),
    "job": Subject(
        "job", _job, lambda folder, name: ["-o", folder / name], "--test-only", _job_files,
        ("state_dict", "state_dict_ema", "optimizer", "scheduler", "epoch", "step"), ("result.csv",),
    ),
}  # fmt: skip
