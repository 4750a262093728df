"""Training steps of an SN-Net with two anchors: those of `stitchkit train` against plain ones."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence

import torch
from torch import nn

from benchmarks import reference
from benchmarks.command import Options, command, random_images, random_snnet
from benchmarks.timing import Check, Result, alternate, ratio
from stitchkit import SNNet
from stitchkit.distributed import World
from stitchkit.settings.by_name import make_recipe
from stitchkit.train.network import place_network
from stitchkit.train.optim import create_optimizer
from stitchkit.train.session import engine_settings
from stitchkit.train.task import StitchTask

_LR, _WEIGHT_DECAY = 1e-4, 0.05

_COMPARED = 3
"""The first steps, all with one stitch. Later losses differ on purpose: ours leaves parameters off the route alone."""


def measure(options: Options) -> Result:
    """Time a fixed sequence of stitches, over and over, on one batch.

    A CPU runs the two cheaper anchors in float32, and ours once more with compiled blocks if g++ is found. A GPU runs
    the two costlier ones: ours in bfloat16 with compiled blocks, the reference in float16 with a loss scaler, so that
    their losses are not comparable.
    """
    on_gpu = options.device == "cuda"
    anchors = slice(-2, None) if on_gpu else slice(2)
    batch = (8 if options.quick else 128) if on_gpu else (2 if options.quick else 8)
    # On a CPU ours stays uncompiled, as compiling needs g++; what it brings is a figure of its own.
    compiles = not on_gpu and not options.quick and shutil.which("g++") is not None
    models = [random_snnet(options, anchors) for _ in range(3 if compiles else 2)]
    cfg_ids = _sequence(len(models[0].space), 2 if options.quick else 9)
    images = random_images(models[0], batch)
    labels = torch.arange(batch, device=images.device) % models[0].num_classes
    plain = reference.train_steps(models[1], cfg_ids, images, labels, lr=_LR, weight_decay=_WEIGHT_DECAY)
    ways = {"ours": _steps(models[0], cfg_ids, images, labels, compiled=on_gpu), "reference": plain}
    if compiles:
        ways["compiled"] = _steps(models[2], cfg_ids, images, labels, compiled=True)
    seconds, losses = alternate(ways, rounds=5, quick=options.quick, device=options.device)
    pairs = zip(losses["ours"][:_COMPARED], losses["reference"][:_COMPARED], strict=True)
    check = Check(f"losses of {_COMPARED} steps, absolute", max(abs(a - b) for a, b in pairs), 1e-4)
    return Result(
        "train_step",
        f"{len(cfg_ids)} steps, two anchors, batch {batch}, {options.label}",
        seconds,
        () if on_gpu else (check,),
        {"ratio_compiled": ratio(seconds, "reference", "compiled")} if compiles else {},
    )


def _sequence(num_stitches: int, count: int) -> list[int]:
    """The stitch of each step: one for the compared steps, then `count` spread over the space."""
    return [num_stitches // 2] * _COMPARED + [number * num_stitches // count for number in range(count)]


def _steps(
    model: SNNet, cfg_ids: Sequence[int], images: torch.Tensor, labels: torch.Tensor, *, compiled: bool
) -> Callable[[], list[float]]:
    """Steps like those of `stitchkit.engine.loop`; losses are fetched once, after the last one."""
    device = images.device
    settings = {"opt": "adamw", "weight_decay": _WEIGHT_DECAY}
    settings |= {"torchcompile": "inductor"} if compiled else {}
    settings |= {"amp": True, "amp_dtype": "bfloat16"} if device.type == "cuda" else {}
    recipe = make_recipe(settings)
    place_network(model, recipe, World(0, 1, device))
    task = StitchTask(model, nn.CrossEntropyLoss(), device=device)
    optimizer = create_optimizer(model, recipe.optim, lr=_LR)
    autocast, _ = engine_settings(recipe).precision(device)

    def run() -> list[float]:
        task.train()
        losses = []
        for cfg_id in cfg_ids:
            with autocast():
                loss = task(images, labels, cfg_id)["loss"]
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            optimizer.zero_grad(set_to_none=True)
        fetched: list[float] = torch.stack(losses).tolist()
        return fetched

    return run


if __name__ == "__main__":
    sys.exit(command(measure, __doc__, devices=("cpu", "cuda")))
