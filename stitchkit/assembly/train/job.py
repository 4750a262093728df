"""A job: its files, data, network and trainer."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import random_seed
from torch import nn

from stitchkit._version import __version__
from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.parts.network import build_network, check_network
from stitchkit.assembly.parts.part import Assembly
from stitchkit.assembly.train.data import TaskData, TrainingLoader, download_data, open_data
from stitchkit.assembly.train.dense import pixel_loss
from stitchkit.assembly.train.metrics import create_all_measures, tested_figures
from stitchkit.assembly.train.optim import create_loss, create_optimizer, create_schedule
from stitchkit.assembly.train.preprocessing import create_transform, with_preparation
from stitchkit.assembly.train.result import Row
from stitchkit.assembly.train.task import Captured, Expected, JobTask, TaskLoss, WeightedLoss, rehearse
from stitchkit.distributed import World, from_primary
from stitchkit.engine.bfloat16 import suit_precision
from stitchkit.engine.loop import Trainer
from stitchkit.engine.settings import EngineSettings
from stitchkit.errors import InputError, one_line
from stitchkit.measure.profile import measure
from stitchkit.settings.files import naming

_logger = logging.getLogger(__name__)

_RESULT, _SETTINGS, _QUICK = "result.pkl", "config.yml", "smoke"


@dataclass(frozen=True)
class JobPaths:
    """The places of a job's files: the folder of its checkpoints, its pickled result, its resolved settings."""

    folder: Path
    result: Path
    settings: Path

    @property
    def metadata(self) -> Path:
        """Facts about the job: its cost, its classes, and the versions of the software."""
        return self.result.with_name("metadata.yml")


def job_paths(config: JobConfig, source: Path | None, *, is_quick: bool = False) -> JobPaths:
    """The places of a job's files; the file that it was read from is never overwritten.

    A quick run has a folder of its own in that of the job, so none of its files is taken for one of the job.
    """
    stem = source.stem if source else ""
    folder = Path(config.save_dir or Path("outputs", "job" if stem in ("", ".", "..") else stem)).expanduser()
    if is_quick:
        return JobPaths(folder / _QUICK, folder / _QUICK / _RESULT, folder / _QUICK / _SETTINGS)
    result = Path(config.metrics_output).expanduser() if config.metrics_output else folder / _RESULT
    if result.suffix != ".pkl":
        raise InputError(f"metrics_output '{result}' must end with .pkl: it is a pickled table")
    settings = result.with_name(_SETTINGS)
    if result.parent != folder and not result.exists() and settings.exists() and settings != source:
        raise InputError(f"'{settings}' belongs to another result; choose another --metrics-output")
    if source is not None and source.resolve() == settings.resolve():
        settings = result.with_suffix(".yml")
    return JobPaths(folder, result, settings)


@dataclass
class Job:
    """A job that is ready to run; its network is on the device of this rank, its trainer None if it only tests.

    `rows` are the figures of all epochs so far, of which a resumed job has some.
    """

    config: JobConfig
    network: Assembly
    data: list[TaskData]
    trainer: Trainer | None
    metadata: dict[str, object]
    world: World
    paths: JobPaths
    rows: list[Row] = field(default_factory=list)


def open_job(config: JobConfig, world: World, source: Path | None, paths: JobPaths, *, download: bool = False) -> Job:
    """Open the data, build the network and its trainer; errors name the file that the job was read from."""
    with naming(source, is_parsed=True) if source else nullcontext():
        prepared = with_preparation(config)
        size = (3, *prepared.train_config.resolved_tasks[0].data_preprocessing.size)
        build: dict[str, Any] = {"input_size": size, "replaced": config.replaces_weights}
        # First the settings and the parts: an error in them should not wait for data that may take long to download.
        # The number of classes is not known yet; a network that fits one class fits any.
        check_training(config)
        check_network(config.network, num_classes=config.wanted(), **build)
        if download:
            from_primary(world, lambda: download_data([config]))
        data = open_data(prepared, world)
        random_seed(config.train_config.seed, 0)  # the same weights on all ranks
        wanted = config.wanted([len(task.classes) for task in data])
        network = build_network(config.network, num_classes=wanted, pretrained=config.pretrained, **build)
        metadata = _metadata(network, torch.zeros(1, *size), data, world)
        network.to(world.device)
        suit_precision(network, world.device, amp=config.train_config.amp, how="train_config.amp: true")
        task = _task(config, network, data, world)
        trainer = None if config.test_only else _trainer(config, task, size, data, world, paths)
    return Job(config, network, data, trainer, metadata, world, paths)


def _metadata(network: nn.Module, image: torch.Tensor, data: list[TaskData], world: World) -> dict[str, object]:
    """Facts about a job: the cost of its network for an image, its classes, and the versions of the software."""
    parameters = list(network.parameters())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of each branch
            flops = {"num_flops": measure(network, image).flops}
    except RuntimeError as error:  # fvcore cannot trace every network
        _logger.info("FLOPs cannot be counted: %s", one_line(error))
        flops = {}
    return {
        "num_params": sum(parameter.numel() for parameter in parameters),
        "num_trainable_params": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        **flops,
        # Plain values, because the published scripts use them as the keys of a table.
        "num_classes": len(data[0].classes) if len(data) == 1 else ", ".join(str(len(task.classes)) for task in data),
        "num_ranks": world.size,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        "stitchkit": __version__,
        "torch": str(torch.__version__),
        "timm": timm.__version__,
    }


def _task(config: JobConfig, network: nn.Module, data: list[TaskData], world: World) -> JobTask:
    train, losses = config.train_config, []
    for task, place in zip(data, train.places, strict=True):
        weighted = {} if task.class_weights is None else {"weight": task.class_weights.to(world.device)}
        dense = pixel_loss(task.config) if task.config.is_dense else None
        main = dense or create_loss(task.config.loss_fn, {**task.config.loss_fn_args, **weighted}, place, world.device)
        further = []
        for number, aux in enumerate(task.config.aux_losses):
            here = f"{place}.aux_losses[{number}]"
            loss = dense or create_loss(aux.loss_fn, aux.loss_fn_args, here, world.device)
            further.append(WeightedLoss(Captured(network, aux.output, here, training=True), loss, aux.weight))
        losses.append(TaskLoss(main, tuple(further)))
    return JobTask(network, losses, device=world.device)


def _trainer(
    config: JobConfig, task: JobTask, size: tuple[int, int, int], data: list[TaskData], world: World, paths: JobPaths
) -> Trainer:
    train = config.train_config
    parameters = trained_parameters(task.network)
    expected = [Expected(each.config.name, each.config.task, len(each.classes)) for each in data]
    unused = rehearse(task, size, expected)
    optimizer = create_optimizer(train, parameters)
    loader, settings = TrainingLoader([each.train for each in data]), engine_settings(config)
    if len(loader) < settings.grad_accum_steps:
        raise InputError(
            f"train_config.grad_accum_steps is {settings.grad_accum_steps}, but an epoch has {len(loader)} batches on "
            "each rank; lower it or batch_size"
        )
    trainer = Trainer(
        task=task, loader=loader, optimizer=optimizer, schedule=create_schedule(train, optimizer), settings=settings,
        world=world, folder=paths.folder,
    )  # fmt: skip
    trainer.prepare_distributed(find_unused=bool(unused))
    return trainer


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of a network that train, of which it must have some."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("every part is frozen, so nothing would be trained; unfreeze one, or set --test-only")
    return parameters


def engine_settings(config: JobConfig) -> EngineSettings:
    """The settings of a job that the engine needs."""
    train = config.train_config
    return EngineSettings.pick(
        vars(train),
        batch_size=sum(task.batch_size for task in train.resolved_tasks),
        log_interval=1 if config.verbose > 1 else config.print_freq,
        checkpoint_interval=config.checkpoint_interval,
        clip_grad=train.max_grad_norm or None,
        dist_bn="broadcast",  # a mean would change the last bit of the statistics of frozen parts
    )


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let torch use only deterministic algorithms if `wanted`, and restore the previous settings."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by CUDA's matrix products
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def check_training(config: JobConfig) -> None:
    """Create everything once that training and tests need beyond network and data, to check that torch accepts it."""
    if config.test_only and not config.has_weights:
        raise InputError(
            "test_only needs trained weights, but pretrained is false and no file is named; set load_from: FILE, or "
            "omit pretrained: false or --no-pretrained"
        )
    train = config.train_config
    for number, (task, place) in enumerate(zip(train.resolved_tasks, train.places, strict=True)):
        tested_figures(config, number)
        if task.is_dense:
            continue  # its loss and its transform are its own
        create_loss(task.loss_fn, task.loss_fn_args, place)
        if task.class_weights is not None and "weight" in task.loss_fn_args:
            raise InputError(f"{place}.class_weights: loss_fn_args has a weight too; remove one of the two")
        for place_of_aux, aux in enumerate(task.aux_losses):
            create_loss(aux.loss_fn, aux.loss_fn_args, f"{place}.aux_losses[{place_of_aux}]")
        create_transform(task, place, training=True)
    # A matrix, because Muon accepts nothing else; the network's own weights are checked later.
    create_schedule(train, create_optimizer(train, [nn.Parameter(torch.zeros(1, 1))]))
    create_all_measures(config.metrics)
