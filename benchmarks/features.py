"""Training steps without labels, `--loss features`: with frozen anchors, as by default, against training everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.frame import DEVICES, PRECISIONS, Check, Options, Result, command, random_images, random_snnet
from benchmarks.limit import Limit, multiply_adds
from stitchkit import SNNet
from stitchkit.distributed import World
from stitchkit.model.onepass import LiveBytes
from stitchkit.networks.mode import unfused_attention
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.features import FeatureLoss
from stitchkit.training.network import place_network
from stitchkit.training.objective import Objective
from stitchkit.training.optim import create_optimizer
from stitchkit.training.preserve import freeze
from stitchkit.training.session import engine_settings
from stitchkit.training.task import StitchTask

_WAYS = {"ours": "frozen", "reference": "none"}
"""The setting `preserve` of each way."""


def measure(options: Options) -> Result:
    """Time steps with stitches spread over the space, on one batch, and measure how much memory they take.

    The memory is that of weights, copies of anchors, gradients, states of the optimizer and activations.
    """
    on_gpu = options.device == "cuda"
    batch = (8 if options.quick else 128) if on_gpu else (2 if options.quick else 8)
    cfg_ids: list[int] = []

    def create(preserve: str) -> _Training:
        model = random_snnet(options, slice(-2, None) if on_gpu else slice(2))
        count = 2 if options.quick else 6
        cut = model.space.cut
        cfg_ids[:] = [cut[number * len(cut) // count] for number in range(count)]
        return _steps(model, preserve, cfg_ids, random_images(model, batch), options.amp)

    peaks, work = dict[str, int](), dict[str, int]()
    for way, preserve in _WAYS.items():
        steps = create(preserve)
        peaks[way] = _peak(steps.run, steps.weights, device=options.device)
        with unfused_attention(steps.networks):
            work[way] = multiply_adds(steps.run)
    ways = {way: create(preserve).run for way, preserve in _WAYS.items()}
    limit = Limit.find(options)
    seconds, losses = options.alternate(ways, rounds=5, limit=limit)
    # Later losses differ: where everything is trained, the anchors learn too.
    tolerance = 0.05 if options.amp else 1e-4
    check = Check("loss of the first step, absolute", abs(losses["ours"][0] - losses["reference"][0]), tolerance)
    return Result(
        "features",
        f"{len(cfg_ids)} steps, two anchors, batch {batch}, {options.label}",
        seconds,
        (check,),
        {
            "memory_ratio": peaks["reference"] / peaks["ours"],
            **{f"{way}_gb": peaks[way] / 1e9 for way in _WAYS},
            **limit.shares(seconds, work),
        },
    )


class _Training(NamedTuple):
    """Steps, the networks that they run, and the bytes of all weights, with those of copies."""

    run: Callable[[], list[float]]
    networks: nn.ModuleList
    weights: int


def _steps(
    model: SNNet, preserve: str, cfg_ids: Sequence[int], images: torch.Tensor, amp: Mapping[str, object]
) -> _Training:
    """Steps like those of `stitchkit.engine.loop`."""
    device = images.device
    recipe = make_recipe({"opt": "adamw", "weight_decay": 0.05, "loss": "features", "preserve": preserve, **amp})
    place_network(model, recipe, World(0, 1, device))
    freeze(model, recipe.stitch)
    features = FeatureLoss(model, recipe.stitch)
    task = StitchTask(model, Objective(features.term), device=device)
    optimizer = create_optimizer(model, recipe.optim, lr=1e-4)
    autocast, _ = engine_settings(recipe).precision(device)
    labels = torch.full((len(images),), -1, device=device)

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

    networks = nn.ModuleList([model] if features.copies is None else [model, features.copies])
    return _Training(run, networks, sum(weight.nbytes for weight in networks.parameters()))


def _peak(run: Callable[[], list[float]], weights: int, *, device: str) -> int:
    """The largest number of bytes at any moment of the steps."""
    if device == "cuda":  # the backward pass runs in a thread of its own, which `LiveBytes` does not see
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return weights + int(torch.cuda.max_memory_allocated() - before)
    live = LiveBytes()
    with live:
        run()
    return weights + live.peak


if __name__ == "__main__":
    raise SystemExit(command(measure, __doc__, devices=DEVICES, precisions=PRECISIONS))
