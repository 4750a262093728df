"""The command that trains: train."""

from __future__ import annotations

import argparse

from stitchkit.parser import Command

_FIRST_FLAGS = (
    *("data", "config", "stitch_config", "anchors", "model", "epochs", "batch_size", "lr", "img_size", "num_classes"),
    *("workers", "device", "amp", "loss", "task", "output", "experiment", "resume", "eval", "latency", "dry_run"),
)
"""The data and the twenty flags that people need."""


def _add_train_flags(parser: argparse.ArgumentParser) -> None:
    from stitchkit.settings.flags import add_flags  # only now: the recipe takes a while to import

    add_flags(parser)


def _train(flags: argparse.Namespace) -> None:
    from stitchkit.training.inputs import read_run

    recipe, config = read_run(vars(flags))
    from stitchkit.training.run import run  # only now: mistakes in settings need not wait for torch

    run(recipe, config)


train = Command(
    _train, "train an SN-Net or a model, or evaluate it with --eval", _add_train_flags,
    resumes="continue a training from its newest checkpoint with --resume auto, an evaluation by the same command",
    first_flags=_FIRST_FLAGS,
)  # fmt: skip
