"""A job: open its data, build its network, make what trains it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import random_seed
from torch import nn

from stitchkit._version import __version__
from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.optim import create_loss, create_optimizer, create_schedule
from stitchkit.assembly.parts.network import build_network, check_network
from stitchkit.assembly.train.checkpoint import JobCheckpoints
from stitchkit.assembly.train.data import TaskData, TrainingLoader, open_data
from stitchkit.assembly.train.task import Captured, JobTask, WeightedLoss, rehearse
from stitchkit.distributed import World
from stitchkit.engine.epochs import setup_ema
from stitchkit.engine.loop import Trainer
from stitchkit.engine.settings import EngineSettings
from stitchkit.errors import InputError, one_line
from stitchkit.measure.profile import measure
from stitchkit.networks.mode import evaluating
from stitchkit.settings.files import naming

_logger = logging.getLogger(__name__)

_RESULT = "result.pkl"


@dataclass(frozen=True)
class Places:
    """Where a job's files are.

    Args:
        folder: Checkpoints.
        result: The pickled result; settings and metadata are beside it.
        settings: The resolved configuration.
    """

    folder: Path
    result: Path
    settings: Path

    @property
    def metadata(self) -> Path:
        """What is known of the job."""
        return self.result.with_name("metadata.yml")


def places_of(config: JobConfig, source: Path | None) -> Places:
    """Where the files of a job go.

    Args:
        config: The job.
        source: The file it was read from, which is never written over.

    Raises:
        InputError: If the result has a name that it cannot have, or something else has that of the settings.
    """
    folder = Path(config.save_dir or Path("outputs", _stem(source))).expanduser()
    result = Path(config.metrics_output).expanduser() if config.metrics_output else folder / _RESULT
    if result.suffix != ".pkl":
        raise InputError(f"metrics_output '{result}' is a pickled table; let its name end with .pkl")
    settings = result.with_name("config.yml")
    if result.parent != folder and not result.exists() and settings.exists() and settings != source:
        raise InputError(f"'{settings}' is of something else; choose another --metrics-output")
    if source is not None and source.resolve() == settings.resolve():
        settings = result.with_suffix(".yml")
    return Places(folder, result, settings)


def check_unused(config: JobConfig, places: Places, files: JobCheckpoints) -> None:
    """See that a job writes over no other one's result or checkpoints.

    Args:
        config: The job, with the checkpoint that it resumes from.
        places: Where its files go.
        files: The checkpoints in its folder.

    Raises:
        InputError: If it would.
    """
    if places.result.exists() and (config.test_only or not config.resume_from):
        raise InputError(
            f"'{places.result}' exists, so this job is done; choose another -o or --metrics-output, or remove it"
        )
    resumes_here = config.resume_from and Path(config.resume_from).resolve().parent == places.folder.resolve()
    if (found := files.candidates()) and not config.test_only and not resumes_here:
        raise InputError(
            f"the folder already holds a job, whose checkpoint is '{found[0]}'; resume it with --resume auto, or "
            "choose another -o"
        )


def _stem(source: Path | None) -> str:
    """What the folder of a job is called."""
    stem = source.stem if source else "job"
    return "job" if stem in ("", ".", "..") else stem


@dataclass
class Job:
    """A job that is ready to run.

    Args:
        config: Its settings.
        network: On the device of this rank, not wrapped.
        data: Of each task.
        trainer: Trains it; None where it is only tested.
        metadata: What is known of it.
        world: This process among all.
        places: Where its files go.
    """

    config: JobConfig
    network: nn.Module
    data: list[TaskData]
    trainer: Trainer | None
    metadata: dict[str, Any]
    world: World
    places: Places


def open_job(config: JobConfig, world: World, source: Path | None, places: Places) -> Job:
    """Open the data, build the network and make what trains it.

    Args:
        config: The job.
        world: This process among all.
        source: The file it was read from; errors name it.
        places: Where its files go.

    Raises:
        InputError: If anything cannot be used as asked; nothing was trained.
    """
    with naming(source) if source else nullcontext():
        # A part that is wrong is told first: data may take long to get. One class fits all that more classes fit.
        check_network(config.network, num_classes=1, **_building(config))
        data = open_data(config, world)
        random_seed(config.train_config.seed, 0)  # the same weights on all ranks
        network = _network(config, data)
        cost = _cost(network, data)
        network.to(world.device)
        task = _task(config, network, data, world)
        trainer = None if config.test_only else _trainer(config, task, data, world, places)
    return Job(config, network, data, trainer, {**cost, **_about(data, world)}, world, places)


def _network(config: JobConfig, data: list[TaskData]) -> nn.Module:
    classes = min(len(task.classes) for task in data)  # each task's own head is looked at later
    return build_network(config.network, num_classes=classes, **_building(config))


def _building(config: JobConfig) -> dict[str, Any]:
    """What a network is built with beside its parts and classes."""
    side = config.train_config.resolved_tasks[0].data_preprocessing.image_size
    # All weights of a checkpoint take the place of the pretrained ones.
    replaced = bool(config.resume_from or (config.load_from and config.strict_load))
    return {"input_size": (3, side, side), "pretrained": config.pretrained and not replaced}


def _cost(network: nn.Module, data: list[TaskData]) -> dict[str, Any]:
    """Parameters, those that train, and FLOPs for one image."""
    side = data[0].config.data_preprocessing.image_size
    parameters = list(network.parameters())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing
            flops: int | None = measure(network, torch.zeros(1, 3, side, side)).flops
    except RuntimeError as error:  # what fvcore cannot trace
        _logger.info("FLOPs cannot be counted: %s", one_line(error))
        flops = None
    return {
        "num_params": sum(parameter.numel() for parameter in parameters),
        "num_trainable_params": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "num_flops": flops,
    }


def _about(data: list[TaskData], world: World) -> dict[str, Any]:
    return {
        "num_classes": {task.config.name: len(task.classes) for task in data},
        "num_ranks": world.size,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        "stitchkit": __version__,
        "torch": str(torch.__version__),
        "timm": timm.__version__,
    }


def _task(config: JobConfig, network: nn.Module, data: list[TaskData], world: World) -> JobTask:
    train = config.train_config
    losses = [create_loss(task.config.loss_fn, task.config.loss_fn_args, "train_config", world.device) for task in data]
    further = []
    for number, aux in enumerate(train.aux_losses):
        place = f"train_config.aux_losses[{number}]"
        loss = create_loss(aux.loss_fn, aux.loss_fn_args, place, world.device)
        further.append(WeightedLoss(Captured(network, aux.output, place, training=True), loss, aux.weight))
    return JobTask(network, losses, further, device=world.device)


def _trainer(config: JobConfig, task: JobTask, data: list[TaskData], world: World, places: Places) -> Trainer:
    train, network = config.train_config, task.trainable_module
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("every part is frozen, so nothing would be trained; leave one unfrozen, or give --test-only")
    unused = _rehearse(task, data, world)
    optimizer = create_optimizer(train, parameters)
    loader, settings = TrainingLoader([each.train for each in data]), engine_settings(config)
    if len(loader) < settings.grad_accum_steps:
        raise InputError(
            f"train_config.grad_accum_steps is {settings.grad_accum_steps}, and an epoch has {len(loader)} batches on "
            "each rank; lower it or batch_size"
        )
    trainer = Trainer(
        task=task, loader=loader, optimizer=optimizer, schedule=create_schedule(train, optimizer), settings=settings,
        world=world, folder=places.folder,
    )  # fmt: skip
    setup_ema(trainer)
    if world.size > 1:
        options: dict[str, Any] = {"find_unused_parameters": bool(unused)}
        task.prepare_distributed(device_ids=[world.device.index] if world.device.type == "cuda" else None, **options)
    return trainer


def engine_settings(config: JobConfig) -> EngineSettings:
    """What a job tells the engine."""
    train = config.train_config
    return EngineSettings(
        seed=train.seed,
        batch_size=sum(task.batch_size for task in train.resolved_tasks),
        log_interval=config.print_freq,
        checkpoint_interval=config.checkpoint_interval,
        grad_accum_steps=train.grad_accum_steps,
        clip_grad=train.max_grad_norm or None,
        amp=train.amp,
        amp_dtype=train.amp_dtype,
        model_ema=train.model_ema,
        model_ema_decay=train.model_ema_decay,
        dist_bn="broadcast",  # a mean would not leave those of frozen parts bitwise
        max_steps=train.max_steps,
    )


def _rehearse(task: JobTask, data: list[TaskData], world: World) -> list[str]:
    """Names of trainable parameters that losses do not depend on, from one step with blank images."""
    side = data[0].config.data_preprocessing.image_size
    images = torch.zeros(2 * len(data), 3, side, side, device=world.device)
    labels = tuple(torch.zeros(2, dtype=torch.long, device=world.device) for _ in data)
    with evaluating(task.trainable_module):
        return rehearse(task, images, labels, [(each.config.name, len(each.classes)) for each in data])


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let torch use deterministic algorithms alone for a while, where that is wanted."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA's matrix products refuse
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
