"""The check of settings that torch names: losses, optimizer, schedule, transforms, metrics."""

from __future__ import annotations

import torch
from torch import nn

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.train.metrics import create_all_measures, tested_figures
from stitchkit.assembly.train.optim import create_loss, create_optimizer, create_schedule
from stitchkit.assembly.train.preprocessing import create_transform
from stitchkit.errors import InputError


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
