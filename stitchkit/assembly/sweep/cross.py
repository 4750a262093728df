"""Sweeps of heads by encoders: the head of every fine-tuned job on the encoder of every other one, only tested.

Source: the cross-tests of "Bridging Large Gaps in Neural Network Representations with Model Stitching".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os.path import isfile
from pathlib import Path

from pydantic import Field, StrictBool, StrictInt, StrictStr
from pydantic.dataclasses import dataclass as schema

from stitchkit.assembly.config.job import WRITTEN, JobConfig
from stitchkit.assembly.config.job_settings import override
from stitchkit.assembly.config.settings import Metric
from stitchkit.assembly.sweep.plan import PlannedJob, Resources, Sweep
from stitchkit.errors import InputError
from stitchkit.settings.files import naming, read_settings_file
from stitchkit.settings.schema import Count, LocalPath, Settings, parse

_BASE = "base"
"""The name of the encoder before any fine-tuning, as the file of a head has it."""


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
    seed: StrictInt | None = Field(default=None, ge=0)
    data_path: LocalPath | None = None
    max_batches: Count | None = None
    metrics: tuple[Metric, ...] | None = None
    device: StrictStr | None = None
    workers: StrictInt | None = Field(default=None, ge=0)
    deterministic: StrictBool | None = None
    slurm: Resources = Field(default_factory=Resources)


@dataclass(frozen=True)
class _Tuned:
    """A fine-tuned job: its name in the table, its settings file and its checkpoint."""

    name: str
    file: Path
    content: Mapping[str, object]
    checkpoint: Path


def plan_cross(path: str | Path, **changes: object) -> Sweep:
    """A test of every head on every encoder, and on the one before fine-tuning."""
    content = read_settings_file(path)
    with naming(path):
        file = parse(CrossFile, content)
        tuned = _read(file.ft_configs)
        own = {key: value for key, value in content.items() if key not in ("ft_configs", "slurm")} | changes
        jobs = [_planned(Path(path).stem, head, encoder, own) for head in tuned for encoder in (None, *tuned)]
        seed = own.get("seed")
        return Sweep(jobs, (seed if isinstance(seed, int) else None,), file.slurm)


def _read(files: tuple[str, ...]) -> list[_Tuned]:
    found = []
    for number, file in enumerate(map(Path, files)):
        if not isfile(file):  # unlike that of Path, it knows names that are too long
            raise InputError(f"ft_configs[{number}]: '{file}' is not a file; name the config.yml of a trained job")
        config = JobConfig.load(file)
        # Runs of a sweep keep their checkpoints in a folder of their own.
        places = [file.parent, Path(config.save_dir or file.parent), *sorted(file.parent.glob("result*/"))]
        checkpoint = next((place / "checkpoint.pth" for place in places if (place / "checkpoint.pth").is_file()), None)
        if checkpoint is None:
            raise InputError(f"ft_configs[{number}]: there is no checkpoint.pth beside '{file}'; set save_checkpoints")
        name = "+".join(task.name for task in config.train_config.resolved_tasks)
        found.append(_Tuned(name, file, read_settings_file(file), checkpoint))
    several = Counter(each.name for each in found)
    return [
        each if several[each.name] == 1 else replace(each, name=f"{each.name}-{number}")
        for number, each in enumerate(found, 1)
    ]


def _planned(sweep: str, head: _Tuned, encoder: _Tuned | None, settings: Mapping[str, object]) -> PlannedJob:
    name = encoder.name if encoder else _BASE
    weights = {"encoder": str(encoder.checkpoint)} if encoder else {}
    changes = {
        **settings, "test_only": True, "save_checkpoints": False, "start_epoch": 0, "project": None,
        "resume_from": None, "load_from": {**weights, "head": str(head.checkpoint)},
    }  # fmt: skip
    about = {
        "arch": sweep, "head_dataset": head.name, "head_loc": str(head.file), "encoder_dataset": name,
        "encoder_loc": str(encoder.file) if encoder else "",
    }  # fmt: skip
    config = {key: value for key, value in override(head.content, changes).items() if key not in WRITTEN}
    return PlannedJob(
        f"test-{sweep}-head-{head.name}-encoder-{name}", {**about}, config, {"head": head.name, "encoder": name}
    )
