"""The command that trains: train."""

from __future__ import annotations

from stitchkit.parser import Command
from stitchkit.settings.flags import add_flags
from stitchkit.training.inputs import read_run

_FIRST_FLAGS = (
    *("data", "config", "stitch_config", "anchors", "model", "epochs", "batch_size", "lr", "img_size", "num_classes"),
    *("workers", "device", "amp", "loss", "task", "output", "experiment", "resume", "eval", "latency", "dry_run"),
)
"""The data and the twenty flags that people need."""


train = Command(
    "stitchkit.training.run:run", "train an SN-Net or a model, or evaluate it with --eval", add_flags,
    resumes="continue a training from its newest checkpoint with --resume auto, an evaluation by the same command",
    first_flags=_FIRST_FLAGS, check=lambda flags: read_run(vars(flags)),
)  # fmt: skip
