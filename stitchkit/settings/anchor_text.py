"""Anchors as `--anchors` takes them: NAME, NAME=FILE or FILE; and the recipe of their SN-Net."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

RECIPE: Mapping[str, object] = {
    "opt": "adamw", "weight_decay": 0.05, "lr_base": 5e-5, "lr_base_size": 512, "lr_base_scale": "linear",
    "warmup_lr": 1e-7, "min_lr": 1e-6, "epochs": 50,
}  # fmt: skip
"""The published optimisation of plain ViTs; timm's defaults are for training from scratch."""
_SUFFIXES = (".pth", ".pt", ".tar", ".safetensors", ".bin")
"""Of checkpoints; no tag of timm ends like them."""
_OF_RUNS = ("last", "previous", "model_best", "checkpoint-")
"""What the files of a training run are called, so that only its folder tells them apart."""


class AnchorText(NamedTuple):
    """timm's name of an anchor, empty if its checkpoint says it, and the checkpoint, empty for timm's weights."""

    name: str
    file: str

    @property
    def label(self) -> str:
        """Its name in stitches: of the model up to its tag; of a file, or of the folder of the run that wrote it."""
        path, name = Path(self.file), self.name.removeprefix("hf-hub:").split(".")[0]
        if self.file:
            name = path.absolute().parent.name if path.name.startswith(_OF_RUNS) else path.name.split(".")[0]
        return re.sub(r"[^A-Za-z0-9_#-]", "_", name)  # the characters of labels


def read_anchor(text: str) -> AnchorText:
    """The parts of a text."""
    name, equals, file = text.partition("=")
    if equals:
        return AnchorText(name, file)
    return AnchorText("", text) if text.endswith(_SUFFIXES) or Path(text).is_file() else AnchorText(text, "")
