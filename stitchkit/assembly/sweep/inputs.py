"""Data and weights that the jobs of a sweep need, which are looked for once, before any job starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.parts.network import own_arguments
from stitchkit.assembly.parts.part import Part
from stitchkit.assembly.parts.pretrained import Pretrained
from stitchkit.assembly.parts.registry import PARTS
from stitchkit.assembly.parts.spec import PartSpec
from stitchkit.assembly.sweep.plan import PlannedJob
from stitchkit.assembly.train.data import open_data
from stitchkit.data.source import MissingData
from stitchkit.display import counted
from stitchkit.distributed import World

_logger = logging.getLogger(__name__)

_SLICE = ("block_input", "block_output")
"""Arguments that say which slice of a model a part is."""


def check_inputs(jobs: Iterable[PlannedJob], *, on_nodes: bool) -> None:
    """Open the data and load the weights of jobs, each once; what is missing is reported before anything is computed.

    Args:
        on_nodes: The jobs run on other machines, so that missing data are only a warning.
    """
    configs = [job.parsed for job in jobs]
    try:
        _open_data(configs)
    except MissingData as error:
        if not on_nodes:
            raise
        _logger.warning("%s; the jobs fail unless the nodes have it", error)
    # The nodes may have no network, and jobs that start together would download the same files.
    parts = {repr(part): part for config in configs for part in _pretrained_parts(config)}
    if parts:
        _logger.info("loading the weights of %s", counted(len(parts), "part"))
    for build in parts.values():
        build()


def _open_data(configs: Iterable[JobConfig]) -> None:
    # Jobs that prepare the images in other ways read the same files.
    different = {
        (config.data_path, *((task.dataset, task.val_split) for task in config.train_config.resolved_tasks)): config
        for config in configs
    }
    for config in different.values():
        open_data(config, World(0, 1, torch.device("cpu")))


def _pretrained_parts(config: JobConfig) -> Iterator[Callable[[], Part]]:
    """What builds each part of a job that reads weights."""
    network = config.network
    for spec in network.parts if network.head is None else (*network.parts, network.head):
        for part in _with_inner(spec):
            if issubclass(kind := PARTS[part.name], Pretrained):
                given = own_arguments(part, pretrained=config.pretrained, replaced=config.replaces_weights)
                if given.get("ckp_path") is None:  # all slices of a model are of the same download
                    given = {key: value for key, value in given.items() if key not in _SLICE}
                if given.get("pretrained", True) or given.get("ckp_path"):
                    yield partial(kind, **given)


def _with_inner(spec: PartSpec) -> Iterator[PartSpec]:
    """A part and those inside it."""
    yield spec
    inner = [*spec.arguments.get("parts", ()), spec.arguments.get("head")]
    for value in inner:
        if value is not None:
            yield from _with_inner(PartSpec.parse(value, spec.place))
