"""The file of a sweep of heads by encoders."""

from __future__ import annotations

from pydantic import Field, StrictBool, StrictStr
from pydantic.dataclasses import dataclass as schema

from stitchkit.assembly.config.settings import Metric
from stitchkit.assembly.sweep.settings import Resources
from stitchkit.settings.fields import Count, Seed, Workers
from stitchkit.settings.schema import LocalPath, Settings


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
