"""Pico models, a pico dataset and ways to run commands, for all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import stitchkit

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
DEPTH = 3


def pico_anchor(label: str, width: int, **kwargs: Any) -> dict[str, Any]:
    """An anchor entry of a configuration: 16 x 16 images, 4 patches, 3 blocks."""
    arguments = {"img_size": 16, "patch_size": 8, "embed_dim": width, "depth": DEPTH, "num_heads": 2, "num_classes": 4}
    return {"label": label, "name": "vit_tiny_patch16_224", "kwargs": arguments | kwargs}


def pico_config(**changes: Any) -> dict[str, Any]:
    """A configuration of three pico anchors."""
    anchors = [pico_anchor("ti", 8), pico_anchor("s", 16), pico_anchor("b", 32)]
    return {"anchors": anchors, **changes}


def pico_snnet(**changes: Any) -> stitchkit.SNNet:
    """An SN-Net of pico anchors in evaluation mode, with seeded random weights that are not tiny."""
    torch.manual_seed(0)
    model = stitchkit.create_snnet(pico_config(**changes))
    randomize(model)
    return model.eval()


def randomize(model: torch.nn.Module) -> None:
    """Weights large enough that every step shows in the output; timm's start is close to the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def pico_images(count: int = 2) -> torch.Tensor:
    """Images `[count, 3, 16, 16]`."""
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def write_images(folder: Path, *, train: int = 16, validation: int = 5, classes: int = 4) -> Path:
    """An image folder in which a class is a brightness: `train` and `validation` images of each class."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("validation", validation)):
        for label in range(classes):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 60, (16, 16, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder


def write_config(path: Path, **changes: Any) -> Path:
    """A pico configuration as a file."""
    path.write_text(json.dumps(pico_config(**changes)))
    return path


FLAGS = [
    *("--no-pretrained", "-b", "8", "-j", "0", "--epochs", "2", "--opt", "adamw", "--lr", "1e-3", "--hflip", "0"),
    *("--warmup-epochs", "0", "--log-interval", "2", "--stitch-init-bs", "16", "--device", "cpu"),
]
"""Flags of a run that takes a second."""


def launch(ranks: int, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`./distributed_train.sh ranks arguments...`, as a user runs it."""
    command = [str(ROOT / "distributed_train.sh"), str(ranks), *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        timeout=300,
        cwd=ROOT,
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in one of our checkpoints."""
    content: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return content
