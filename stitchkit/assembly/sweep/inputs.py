"""Data and weights that the jobs of a sweep need, which are looked for once, before any job starts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.parts.pretrained import Pretrained
from stitchkit.assembly.parts.registry import COMMON, PARTS
from stitchkit.assembly.parts.spec import PartSpec
from stitchkit.assembly.sweep.plan import PlannedJob
from stitchkit.assembly.train.data import open_data
from stitchkit.display import counted
from stitchkit.distributed import World
from stitchkit.errors import InputError
from stitchkit.networks.create import load_model

_logger = logging.getLogger(__name__)

_SLICE = ("block_input", "block_output")
"""Arguments of a slice that do not choose the weights of its model."""


def check_inputs(jobs: Iterable[PlannedJob], *, on_nodes: bool) -> None:
    """Open the data and load the weights of jobs, each once; what is missing is reported before anything is computed.

    Args:
        on_nodes: The jobs run on other machines, so that missing data are only a warning.
    """
    configs = [job.parsed for job in jobs]
    try:
        _open_data(configs)
    except InputError as error:
        if not on_nodes:
            raise
        _logger.warning("%s; the jobs fail unless the nodes have it", error)
    # The nodes may have no network, and jobs that start together would download the same files.
    models = {repr(model): model for config in configs for model in _models(config)}
    if models:
        _logger.info("loading the weights of %s", counted(len(models), "model"))
    for model in models.values():
        load_model(**model)


def _open_data(configs: Iterable[JobConfig]) -> None:
    # Jobs that prepare the images in other ways read the same files.
    different = {
        (config.data_path, *((task.dataset, task.val_split) for task in config.train_config.resolved_tasks)): config
        for config in configs
    }
    for config in different.values():
        open_data(config, World(0, 1, torch.device("cpu")))


def _models(config: JobConfig) -> Iterator[dict[str, Any]]:
    """The arguments of `load_model` for every model of a job that has weights."""
    network = config.network
    for spec in network.parts if network.head is None else (*network.parts, network.head):
        for part in _with_inner(spec):
            given = {key: value for key, value in part.arguments.items() if key not in (*COMMON, *_SLICE)}
            if issubclass(PARTS[part.name], Pretrained):
                is_pretrained = config.pretrained and given.pop("pretrained", True)
                checkpoint = given.pop("ckp_path", None)
                if is_pretrained or checkpoint:
                    yield {
                        "name": given.pop("model_name"),
                        "pretrained": is_pretrained,
                        "checkpoint": checkpoint,
                    } | given


def _with_inner(spec: PartSpec) -> Iterator[PartSpec]:
    """A part and those inside it."""
    yield spec
    inner = [*spec.arguments.get("parts", ()), spec.arguments.get("head")]
    for value in inner:
        if value is not None:
            yield from _with_inner(PartSpec.parse(value, spec.place))
