"""Training steps without labels, `--loss features`: with frozen anchors, as by default, against training everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from benchmarks.frame import Check, Options, Result, command, random_images, random_snnet
from stitchkit import SNNet
from stitchkit.distributed import World
from stitchkit.model.activation_memory import LiveBytes
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.features import FeatureLoss
from stitchkit.training.network import place_network
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

    def create(preserve: str) -> tuple[Callable[[], list[float]], int]:
        model = random_snnet(options, slice(-2, None) if on_gpu else slice(2))
        count = 2 if options.quick else 6
        cut = model.space.cut
        cfg_ids[:] = [cut[number * len(cut) // count] for number in range(count)]
        return _steps(model, preserve, cfg_ids, random_images(model, batch))

    peaks = {way: _peak(*create(preserve), device=options.device) for way, preserve in _WAYS.items()}
    ways = {way: create(preserve)[0] for way, preserve in _WAYS.items()}
    seconds, losses = options.alternate(ways, rounds=5)
    # Later losses differ: where everything is trained, the anchors learn too.
    check = Check("loss of the first step, absolute", abs(losses["ours"][0] - losses["reference"][0]), 1e-4)
    return Result(
        "features",
        f"{len(cfg_ids)} steps, two anchors, batch {batch}, {options.label}",
        seconds,
        (check,),
        {"memory_ratio": peaks["reference"] / peaks["ours"], **{f"{way}_gb": peaks[way] / 1e9 for way in _WAYS}},
    )


def _steps(
    model: SNNet, preserve: str, cfg_ids: Sequence[int], images: torch.Tensor
) -> tuple[Callable[[], list[float]], int]:
    """Steps like those of `stitchkit.engine.loop`, and the bytes of all weights, with those of copies."""
    device = images.device
    amp = {"amp": True, "amp_dtype": "bfloat16"} if device.type == "cuda" else {}
    recipe = make_recipe({"opt": "adamw", "weight_decay": 0.05, "loss": "features", "preserve": preserve, **amp})
    place_network(model, recipe, World(0, 1, device))
    freeze(model, recipe.stitch)
    features = FeatureLoss(model, recipe.stitch)
    task = StitchTask(model, nn.CrossEntropyLoss(), features=features, settings=recipe.stitch, device=device)
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

    weights = [*model.parameters(), *(features.copies.parameters() if features.copies is not None else ())]
    return run, sum(weight.nbytes for weight in weights)


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
    raise SystemExit(command(measure, __doc__, devices=("cpu", "cuda")))
