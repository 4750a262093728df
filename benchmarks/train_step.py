"""Training steps of an SN-Net with two anchors: those of `stitchkit train` against plain ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence

import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.nn import functional as F

from benchmarks.frame import DEVICES, PRECISIONS, Check, Options, Result, command, random_images, random_snnet, ratio
from benchmarks.limit import Limit, multiply_adds
from stitchkit import SNNet
from stitchkit.distributed import World
from stitchkit.networks.mode import unfused_attention
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.network import place_network
from stitchkit.training.objective import LabelLoss, Objective, Term
from stitchkit.training.optim import create_optimizer
from stitchkit.training.session import engine_settings
from stitchkit.training.task import StitchTask

_LR, _WEIGHT_DECAY = 1e-4, 0.05

_COMPARED = 3
"""The first steps, all with one stitch. Later losses differ on purpose: ours leaves parameters off the route alone."""


def measure(options: Options) -> Result:
    """Time a fixed sequence of stitches, over and over, on one batch.

    A CPU runs the two cheaper anchors: ours once more with compiled blocks if g++ is found, and in bfloat16 once more
    in float32. A GPU runs the two costlier ones: ours with compiled blocks, and the reference in float16 with a loss
    scaler in place of bfloat16, so that their losses are not comparable.
    """
    on_gpu = options.device == "cuda"
    batch = (8 if options.quick else 128) if on_gpu else (2 if options.quick else 8)

    def create() -> SNNet:
        return random_snnet(options, slice(-2, None) if on_gpu else slice(2))

    model = create()
    count = 2 if options.quick else 9
    # One stitch for the compared steps, then some spread over the space.
    cfg_ids = [len(model.space) // 2] * _COMPARED + [number * len(model.space) // count for number in range(count)]
    images = random_images(model, batch)
    labels = torch.arange(batch, device=images.device) % model.num_classes
    ways = {
        "ours": _ours(model, cfg_ids, images, labels, options.amp, compiled=on_gpu),
        "reference": _reference(create(), cfg_ids, images, labels, options.precision),
    }
    if options.amp:
        ways["float32"] = _ours(create(), cfg_ids, images, labels, {}, compiled=on_gpu)
    # On a CPU ours stays uncompiled, as compiling needs g++; what it brings is a figure of its own.
    if not on_gpu and not options.quick and shutil.which("g++") is not None:
        ways["compiled"] = _ours(create(), cfg_ids, images, labels, options.amp, compiled=True)
    # Counted where nothing is fused or compiled, in steps that are like those of all ways.
    work = multiply_adds(_reference(create(), cfg_ids, images, labels, options.precision))
    limit = Limit.find(options)
    seconds, losses = options.alternate(ways, rounds=5, limit=limit)
    pairs = zip(losses["ours"][:_COMPARED], losses["reference"][:_COMPARED], strict=True)
    tolerance = 0.05 if options.amp else 1e-4
    check = Check(f"losses of {_COMPARED} steps, absolute", max(abs(a - b) for a, b in pairs), tolerance)
    ratios = {f"ratio_{way}": ratio(seconds, "reference", way) for way in ways if way == "compiled"}
    ratios |= {f"ratio_{way}": ratio(seconds, way, "ours") for way in ways if way == "float32"}
    return Result(
        "train_step",
        f"{len(cfg_ids)} steps, two anchors, batch {batch}, {options.label}",
        seconds,
        () if on_gpu and options.amp else (check,),
        {**ratios, **limit.shares(seconds, dict.fromkeys(ways, work))},
    )


def _ours(
    model: SNNet,
    cfg_ids: Sequence[int],
    images: torch.Tensor,
    labels: torch.Tensor,
    amp: Mapping[str, object],
    *,
    compiled: bool,
) -> Callable[[], list[float]]:
    """Steps like those of `stitchkit.engine.loop`; losses are fetched once, after the last one."""
    device = images.device
    settings = {"opt": "adamw", "weight_decay": _WEIGHT_DECAY, **amp}
    settings |= {"torchcompile": "inductor"} if compiled else {}
    recipe = make_recipe(settings)
    place_network(model, recipe, World(0, 1, device))
    task = StitchTask(model, Objective(Term(LabelLoss(nn.CrossEntropyLoss()))), device=device)
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


def _reference(
    model: SNNet, cfg_ids: Sequence[int], images: torch.Tensor, labels: torch.Tensor, precision: str
) -> Callable[[], list[float]]:
    """Plain steps; low precision is, on a GPU, float16 with a loss scaler."""
    groups = param_groups_weight_decay(model, _WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups, lr=_LR, foreach=False, fused=False)
    device, is_low = images.device.type, precision != "float32"
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    scaler = torch.amp.GradScaler(device, enabled=is_low and dtype == torch.float16)

    def run() -> list[float]:
        model.train()
        losses = []
        with unfused_attention(model):
            for cfg_id in cfg_ids:
                with torch.autocast(device, dtype, enabled=is_low):
                    loss = F.cross_entropy(model(images, cfg_id), labels)
                # Both are as published: `item` waits for the device at every step, and the zeros cost a pass.
                losses.append(loss.item())
                optimizer.zero_grad(set_to_none=False)
                torch.autograd.backward(scaler.scale(loss))
                scaler.step(optimizer)
                scaler.update()
        return losses

    return run


if __name__ == "__main__":
    raise SystemExit(command(measure, __doc__, devices=DEVICES, precisions=PRECISIONS))
