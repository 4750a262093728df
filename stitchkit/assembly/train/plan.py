"""The plan of a job, for `--dry-run`: its network, cost, data and files, before anything is loaded or trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.parts.network import TracedPart, check_network
from stitchkit.assembly.parts.part import Assembly, Part
from stitchkit.assembly.train.data import TaskData, open_task
from stitchkit.assembly.train.job import check_training, job_paths, trained_parameters
from stitchkit.assembly.train.preprocessing import with_preparation
from stitchkit.data.source import MissingData
from stitchkit.display import aligned, quantity
from stitchkit.distributed import World
from stitchkit.engine.recovery import AUTO
from stitchkit.networks.mode import evaluating
from stitchkit.settings.files import naming

_HEADER = ("part", "kind", "output", "parameters", "trained", "FLOPs")


def job_plan(config: JobConfig, source: Path) -> str:
    """The plan of a job in words; missing data and files of weights are named in it, all other mistakes are errors."""
    with naming(source, is_parsed=True):
        config = with_preparation(config)
        size = (3, *config.train_config.resolved_tasks[0].data_preprocessing.size)
        check_training(config)
        found = [_opened(config, number) for number in range(len(config.train_config.places))]
        data = [task for task in found if isinstance(task, TaskData)]
        wanted = config.wanted([len(task.classes) if isinstance(task, TaskData) else 1 for task in found])
        network, traced = check_network(config.network, num_classes=wanted, input_size=size, replaced=True)
        if not config.test_only:
            trained_parameters(network)
    lines = [_table(network, traced, size), "", *_of_data(data)]
    files = dict.fromkeys(path for path in config.files if path != AUTO and not Path(path).is_file())
    lines += [f"missing: {fault}" for fault in found if isinstance(fault, str)]
    lines += [f"missing: '{path}', a file of weights" for path in files]
    if not data:
        lines.append("without data, a part whose classes they decide has one logit here")
    folder = job_paths(config, source).folder
    return "\n".join([*lines, f"this was a dry run: nothing was trained or written; the folder would be {folder}"])


def _opened(config: JobConfig, number: int) -> TaskData | str:
    """The data set of a task, or what is missing of it."""
    try:
        return open_task(config, number, World(0, 1, torch.device("cpu")))
    except MissingData as error:
        return str(error)


def _of_data(data: list[TaskData]) -> Iterator[str]:
    for task in data:
        batches = f"batches of {task.config.batch_size} images: {len(task.train)} to train, {len(task.test)} to test"
        what = "depth" if task.config.task == "depth" else f"{len(task.classes)} classes"
        yield f"data: {task.config.dataset}, {what}, {batches}"


def _table(network: Assembly, traced: list[TracedPart], size: tuple[int, int, int]) -> str:
    flops = _flops(network, size)
    of = {id(one.part): one for one in traced}
    rows = [_row(name, part, of[id(part)], flops) for name, part in network.named_modules() if id(part) in of]
    total = _cost("", network, flops)
    return aligned([_HEADER, *rows, ("", "", "total", *total)], left={0, 1, 2})


def _row(name: str, part: torch.nn.Module, traced: TracedPart, flops: Mapping[str, int]) -> tuple[str, ...]:
    given = traced.spec.arguments
    named = [given.get(key) for key in ("block_input", "block_output")]
    first, last = (", ".join(end) if isinstance(end, list) else end for end in named)
    cut = f" {first or 'x'} to {last or 'the end'}" if any(named) else ""
    kind = f"{traced.spec.name} {given.get('model_name', '')}".strip() + cut
    return name, kind, traced.output, *_cost(name, part, flops)


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
    found = {name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()}
    names = [name for name, part in network.named_modules() if isinstance(part, Part)]
    return {name: found.get(f"{root}.{name}" if name else root, 0) for name in names}
