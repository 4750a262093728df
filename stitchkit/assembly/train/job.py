"""A job: its files, data, network and trainer."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import random_seed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stitchkit._version import __version__
from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.parts.network import TracedPart, build_network, check_network
from stitchkit.assembly.parts.part import Assembly, Part
from stitchkit.assembly.train.data import TaskData, TrainingLoader, dense_recipe, download_data, open_data, open_task
from stitchkit.assembly.train.metrics import create_all_measures, tested_figures
from stitchkit.assembly.train.optim import create_loss, create_optimizer, create_schedule
from stitchkit.assembly.train.preprocessing import create_transform, with_preparation
from stitchkit.assembly.train.result import Row
from stitchkit.assembly.train.task import Captured, Expected, JobTask, TaskLoss, WeightedLoss, rehearse
from stitchkit.data.source import MissingData
from stitchkit.display import aligned, quantity
from stitchkit.distributed import World, from_primary
from stitchkit.engine.loop import Trainer
from stitchkit.engine.recovery import AUTO
from stitchkit.engine.settings import EngineSettings, suit_precision
from stitchkit.errors import InputError, one_line
from stitchkit.measure.profile import measure
from stitchkit.networks.mode import evaluating
from stitchkit.settings.files import naming
from stitchkit.settings.tasks import DENSE
from stitchkit.tasks.table import TASKS

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

    `rows` are the figures of all epochs so far, also of those before a resume.
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
        # First the settings and the parts: an error in them should not wait for a download. The number of classes is
        # not known yet; a network that fits one class fits any.
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
    for task, where in zip(data, train.places, strict=True):
        dense = TASKS[task.config.task].loss(dense_recipe(task.config)) if task.config.is_dense else None
        main = dense or create_loss(task.config.loss_fn, task.config.loss_fn_args, where, world.device)
        further = []
        for number, aux in enumerate(task.config.aux_losses):
            own = f"{where}.aux_losses[{number}]"
            loss = dense or create_loss(aux.loss_fn, aux.loss_fn_args, own, world.device)
            further.append(WeightedLoss(Captured(network, aux.output, own, training=True), loss, aux.weight))
        losses.append(TaskLoss(main, tuple(further)))
    return JobTask(network, losses, device=world.device)


def _trainer(
    config: JobConfig, task: JobTask, size: tuple[int, int, int], data: list[TaskData], world: World, paths: JobPaths
) -> Trainer:
    train = config.train_config
    parameters = trained_parameters(task.network)
    expected = [Expected(each.config.name, DENSE.get(each.config.task), len(each.classes)) for each in data]
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
    """The parameters of a network that train; it must have some."""
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
    if config.test_only and not (config.pretrained or config.files):
        raise InputError(
            "test_only needs trained weights, but pretrained is false and no file is named; set load_from: FILE, or "
            "omit pretrained: false or --no-pretrained"
        )
    train = config.train_config
    for number, (task, where) in enumerate(zip(train.resolved_tasks, train.places, strict=True)):
        tested_figures(config, number)
        if task.is_dense:
            continue  # its loss and its transform are its own
        create_loss(task.loss_fn, task.loss_fn_args, where)
        for index, aux in enumerate(task.aux_losses):
            create_loss(aux.loss_fn, aux.loss_fn_args, f"{where}.aux_losses[{index}]")
        create_transform(task, where, training=True)
    # A matrix, because Muon accepts nothing else; the network's own weights are checked later.
    create_schedule(train, create_optimizer(train, [nn.Parameter(torch.zeros(1, 1))]))
    create_all_measures(config.metrics)


def job_plan(config: JobConfig, source: Path) -> str:
    """The plan of a job in words; missing data and files of weights are named in it, all other mistakes are errors."""
    with naming(source, is_parsed=True):
        config = with_preparation(config)
        size = (3, *config.train_config.resolved_tasks[0].data_preprocessing.size)
        check_training(config)
        opened = [_opened(config, number) for number in range(len(config.train_config.places))]
        data = [task for task in opened if isinstance(task, TaskData)]
        wanted = config.wanted([len(task.classes) if isinstance(task, TaskData) else 1 for task in opened])
        network, traced = check_network(config.network, num_classes=wanted, input_size=size, replaced=True)
        if not config.test_only:
            trained_parameters(network)
    lines = [_table(network, traced, size), ""]
    for task in data:
        batches = f"batches of {task.config.batch_size} images: {len(task.train)} to train, {len(task.test)} to test"
        facts = DENSE.get(task.config.task)
        what = task.config.task if facts and not facts.has_classes else f"{len(task.classes)} classes"
        lines.append(f"data: {task.config.dataset}, {what}, {batches}")
    files = dict.fromkeys(path for path in config.files if path != AUTO and not Path(path).is_file())
    lines += [f"missing: {fault}" for fault in opened if isinstance(fault, str)]
    lines += [f"missing: '{path}', a file of weights" for path in files]
    if not data:
        lines.append("without data, parts that take their classes from them have one logit")
    folder = job_paths(config, source).folder
    return "\n".join([*lines, f"this was a dry run: nothing was trained or written; the folder would be {folder}"])


def _opened(config: JobConfig, number: int) -> TaskData | str:
    try:
        return open_task(config, number, World(0, 1, torch.device("cpu")))
    except MissingData as error:
        return str(error)


def _table(network: Assembly, traced: list[TracedPart], size: tuple[int, int, int]) -> str:
    flops = _flops(network, size)
    by_part = {id(each.part): each for each in traced}
    rows: list[tuple[str, ...]] = [("part", "kind", "output", "parameters", "trained", "FLOPs")]
    for name, part in network.named_modules():
        if (each := by_part.get(id(part))) is not None:
            arguments = each.spec.arguments
            named = [arguments.get(key) for key in ("block_input", "block_output")]
            first, last = (", ".join(end) if isinstance(end, list) else end for end in named)
            cut = f" {first or 'x'} to {last or 'the end'}" if any(named) else ""
            kind = f"{each.spec.name} {arguments.get('model_name', '')}".strip() + cut
            rows.append((name, kind, str(each.gives), *_cost(name, part, flops)))
    return aligned([*rows, ("", "", "total", *_cost("", network, flops))], left={0, 1, 2})


def _cost(name: str, part: torch.nn.Module, flops: Mapping[str, int]) -> tuple[str, str, str]:
    parameters = list(part.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return quantity(sum(parameter.numel() for parameter in parameters)), quantity(trained), quantity(flops[name])


def _flops(network: Assembly, size: tuple[int, int, int]) -> dict[str, int]:
    """Multiply-adds of each part for one image, by its name; those of convolutions and matrix products."""
    images = torch.empty(1, *size, device="meta")
    counter = FlopCounterMode(display=False)  # fvcore, which the metadata are from, cannot trace without memory
    with torch.device("meta"), evaluating(network), torch.no_grad(), counter:
        network.to("meta")(images)
    root = type(network).__name__
    flops = {name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()}
    names = [name for name, part in network.named_modules() if isinstance(part, Part)]
    return {name: flops.get(f"{root}.{name}" if name else root, 0) for name in names}
