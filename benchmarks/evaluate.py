"""All stitches of an SN-Net on one batch: one shared pass against one pass per stitch, computation only."""

from __future__ import annotations

import torch

from benchmarks.frame import DEVICES, PRECISIONS, Check, Options, Result, command, random_images, random_snnet, ratio
from benchmarks.limit import Limit, multiply_adds
from stitchkit.distributed import World
from stitchkit.model.onepass import OnePass
from stitchkit.networks.mode import unfused_attention
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.network import place_network
from stitchkit.training.session import engine_settings


@torch.no_grad()
def measure(options: Options) -> Result:
    """Time `forward_all`, and each stitch alone with unfused attention (the reference).

    In float32, further each stitch alone with fused attention; in bfloat16, further `forward_all` in float32.
    """
    model = random_snnet(options)
    batch = 2 if options.quick else 4 if options.device == "cpu" else 64
    images = random_images(model, batch)
    recipe, device = make_recipe(options.amp), images.device
    place_network(model, recipe, World(0, 1, device))
    autocast, _ = engine_settings(recipe).precision(device)

    def ours() -> torch.Tensor:
        with autocast():
            return torch.stack(list(model.forward_all(images).values()))

    def one_by_one() -> torch.Tensor:
        with autocast():
            return torch.stack([model(images, cfg_id) for cfg_id in model.space.ids])

    def reference() -> torch.Tensor:
        with unfused_attention(model):
            return one_by_one()

    ways = {"ours": ours, "reference": reference}
    if options.amp:
        other = random_snnet(options)  # on some CPUs, low precision has changed the attention of the first
        ways["float32"] = lambda: torch.stack(list(other.forward_all(images).values()))
    else:
        # Ours gains by sharing work and by fused attention; this way separates the two.
        ways["one by one, fused"] = one_by_one
    limit = Limit.find(options)
    seconds, logits = options.alternate(ways, rounds=3, limit=limit)
    difference = (logits["ours"] - logits["reference"]).abs().max() / logits["reference"].abs().max()
    with unfused_attention(model):
        shared = batch * multiply_adds(lambda: OnePass(model).at_once(images[:1]))
        alone = batch * multiply_adds(lambda: [model(images[:1], cfg_id) for cfg_id in model.space.ids])
    figure, way = ("ratio_float32", "float32") if options.amp else ("ratio_one_pass_alone", "one by one, fused")
    return Result(
        "evaluate",
        f"{len(model.space)} stitches of {len(model.anchors)} anchors, batch {batch}, {options.label}",
        seconds,
        (Check("logits, relative to the largest", difference.item(), 0.05 if options.amp else 1e-4),),
        {
            figure: ratio(seconds, way, "ours"),
            **limit.shares(seconds, {"ours": shared, "reference": alone}),
            "gmacs_an_image": shared / batch / 1e9,
            "gmacs_an_image_one_by_one": alone / batch / 1e9,
        },
    )


if __name__ == "__main__":
    raise SystemExit(command(measure, __doc__, devices=DEVICES, precisions=PRECISIONS))
