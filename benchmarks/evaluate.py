"""All stitches of an SN-Net on one batch: one shared pass against one pass per stitch, computation only."""

from __future__ import annotations

import torch

from benchmarks.frame import Check, Options, Result, command, random_images, random_snnet, ratio
from stitchkit.networks.mode import unfused_attention


@torch.no_grad()
def measure(options: Options) -> Result:
    """Time `forward_all`, and each stitch alone with unfused attention (the reference) and with fused attention."""
    model = random_snnet(options)
    batch = 2 if options.quick else 4 if options.device == "cpu" else 64
    images = random_images(model, batch)

    def ours() -> torch.Tensor:
        return torch.stack(list(model.forward_all(images).values()))

    def one_by_one() -> torch.Tensor:
        return torch.stack([model(images, cfg_id) for cfg_id in model.space.ids])

    def reference() -> torch.Tensor:
        with unfused_attention(model):
            return one_by_one()

    # Ours gains by sharing work and by fused attention; the third way separates the two.
    ways = {"ours": ours, "reference": reference, "one by one, fused": one_by_one}
    seconds, logits = options.alternate(ways, rounds=3)
    difference = (logits["ours"] - logits["reference"]).abs().max() / logits["reference"].abs().max()
    return Result(
        "evaluate",
        f"{len(model.space)} stitches of {len(model.anchors)} anchors, batch {batch}, {options.label}",
        seconds,
        (Check("logits, relative to the largest", difference.item(), 1e-4),),
        {"ratio_one_pass_alone": ratio(seconds, "one by one, fused", "ours")},
    )


if __name__ == "__main__":
    raise SystemExit(command(measure, __doc__, devices=("cpu", "cuda")))
