"""The command that trains: train."""

from __future__ import annotations

import argparse

from stitchkit.parser import Command
from stitchkit.settings.flags import add_flags


def _train(flags: argparse.Namespace) -> None:
    from stitchkit.settings.flags import resolve
    from stitchkit.train.run import run

    recipe, config = resolve(vars(flags))
    run(recipe, config)


train = Command(_train, "train an SN-Net or a model, or evaluate it with --eval", add_flags)
