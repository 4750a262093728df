"""The command that trains: train."""

from __future__ import annotations

import argparse

from stitchkit.parser import Command
from stitchkit.settings.flags import add_flags


def _train(flags: argparse.Namespace) -> None:
    from stitchkit.training.inputs import read_run

    recipe, config = read_run(vars(flags))
    from stitchkit.training.run import run  # only now: mistakes in settings need not wait for torch

    run(recipe, config)


train = Command(
    _train, "train an SN-Net or a model, or evaluate it with --eval", add_flags,
    resumes="continue a training from its newest checkpoint with --resume auto, an evaluation by the same command",
)  # fmt: skip
