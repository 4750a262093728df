"""Pico jobs: pieces of networks, assemblies of every kind, and a job as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

RESNET: dict[str, Any] = {"layers": [1, 2, 1, 1], "channels": [8, 16, 16, 32]}
VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 8, "depth": 3, "num_heads": 2}
SWIN: dict[str, Any] = {
    "img_size": 64, "window_size": 2, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4],
}  # fmt: skip
Part = dict[str, dict[str, Any]]
"""A part as a YAML file says it: its kind and its arguments."""


def resnet(first: str, last: str, **arguments: object) -> Part:
    """A piece of a pico ResNet."""
    return {"Subnet": {"model_name": "resnet18", "block_input": first, "block_output": last, **RESNET, **arguments}}


def vit(first: str, last: str, **arguments: object) -> Part:
    """A piece of a pico ViT."""
    place = {"block_input": first, "block_output": last}
    return {"Subnet": {"model_name": "vit_tiny_patch16_224", **place, **VIT, **arguments}}


def swin(first: str, last: str, **arguments: object) -> Part:
    """A piece of a pico Swin."""
    place = {"block_input": first, "block_output": last}
    return {"Subnet": {"model_name": "swin_tiny_patch4_window7_224", **place, **SWIN, **arguments}}


def adapter(into: int, out: int, **arguments: object) -> Part:
    """A trainable convolution."""
    return {"SimpleAdapter": {"num_conv": 1, "in_channels": into, "out_channels": out, **arguments}}


JOBS: dict[str, list[Part | str]] = {
    "ResNet to ResNet": [
        resnet("x", "layer2", frozen=True),
        adapter(16, 16),
        resnet("layer3", "fc", out_format="vector"),
    ],
    "CNN to ViT": [
        resnet("x", "layer2", in_format="img", out_format="img", frozen=True),
        adapter(16, 8),
        vit("blocks.1", "head", in_format=["bert", 16], out_format="vector", frozen=True),
    ],
    "ViT to CNN": [
        vit("x", "blocks.0", in_format="img", out_format="bert", frozen=True),
        adapter(16, 16),
        resnet("layer3", "fc", in_format=["img", [8, 8]], out_format="vector", frozen=True),
    ],
    "CNN to Swin": [
        resnet("x", "layer2", frozen=True),
        adapter(16, 16),
        swin("layers.2", "head", in_format=["bhwc", [4, 4]], out_format="vector", frozen=True),
    ],
    "Swin to CNN, by a block": [
        swin("x", "layers.1", img_size=32, out_format=["bhwc", [16, 4, 4]]),
        {"ResNetBottleneck": {"in_channels": 16, "out_channels": 16}},
        resnet("layer3.0", "fc", in_format=["img", [16, 4, 4]], out_format="vector"),
    ],
    "block replaced": [resnet("x", "layer2.0", frozen=True), adapter(16, 16), resnet("layer3", "fc", frozen=True)],
    "network expanded": [
        resnet("x", "layer1", frozen=True),
        {"ResNetBasicBlock": {"in_channels": 8, "out_channels": 8}},
        resnet("layer2", "layer2", frozen=True),
        {"ResNetBasicBlock": {"in_channels": 16, "out_channels": 16}},
        resnet("layer3", "layer4", frozen=True),
        resnet("global_pool", "fc", out_format="vector", frozen=True),
    ],
    "network compressed": [
        swin("x", "layers.0", in_format="img", out_format="bhwc", frozen=True),
        {"SimpleAdapter": {"num_fc": 1, "in_channels": 8, "out_channels": 8, "fc_format": "token"}},
        swin("layers.1", "head", in_format=["bhwc", [8, 16, 16]], out_format="vector", frozen=True),
    ],
    "ViT to ViT, nothing declared": [
        vit("x", "blocks.0"),
        {"VisionTransformerBlock": {"num_heads": 2}},
        vit("blocks.1", "head"),
    ],
    "from scratch": [{"Net": {"model_name": "resnet18", "pretrained": False, **RESNET}}],
    "from scratch, torchvision": [{"Net": {"model_name": "mobilenet_v3_small", "backend": "pytorch"}}],
    "own blocks": [
        {"BaseBlock": {"channels": 8}},
        {"SwinTransformerBlock": {"num_heads": 2, "window_size": 4, "do_shift": True}},
        {"Function": {"name": "relu"}},
        "ClassifierHead",
    ],
}


def job_config(images: Path | str, /, **train: object) -> dict[str, Any]:
    """A frozen beginning of a ResNet, an adapter, and a head."""
    beginning: dict[str, object] = {"model_name": "resnet18", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    beginning |= {"block_input": "x", "block_output": "layer2", "in_format": "img", "out_format": "img", "frozen": True}
    return {
        "assembly": [{"Subnet": beginning}, adapter(8, 16)],
        "head": {"ClassifierHead": {}},
        "workers": 0,
        "device": "cpu",
        "train_config": {
            "dataset": str(images),
            "epochs": 3,
            "batch_size": 16,
            "data_preprocessing": {"image_size": 32, "random_resize_scale": [0.9, 1.0]},
            "optimizer": "AdamW",
            "optimizer_args": {"lr": 0.01},
            **train,
        },
    }


def write_job(folder: Path, config: Mapping[str, object], name: str = "job.yml") -> Path:
    """A job as a file."""
    path = folder / name
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    return path
