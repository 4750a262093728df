"""Pico networks, images and flags for compositions by similarity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 4}
RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 32), "num_classes": 4}
FLAGS = ("--no-pretrained", "--img-size", 32, "--threshold", 0.2, "--total-threshold", 0.1, "--max-depth", 4, "-k", 3)
"""Flags of a search that takes a second."""


def convnet(*widths: int, classes: int = 4) -> nn.Sequential:
    """Convolutions, pooling, two linear layers."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), widths, strict=False):
        convolution = nn.Conv2d(before, after, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], 12), nn.ReLU(), nn.Linear(12, classes)]
    return nn.Sequential(*layers, *head)


def write_colours(folder: Path, **counts: int) -> Path:
    """A folder of images whose classes are colours; the counts are the images of each class in a split."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        for label in range(3):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 60, (24, 20, 3))
                pixels[..., label] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder


def write_pico_nets(folder: Path) -> Path:
    """A stitch configuration with two pico networks."""
    anchors = [
        {"label": "resnet", "name": "resnet18", "kwargs": RESNET},
        {"label": "vit", "name": "vit_tiny_patch16_224", "kwargs": VIT},
    ]
    path = folder / "pico.json"
    path.write_text(json.dumps({"anchors": anchors}))
    return path
