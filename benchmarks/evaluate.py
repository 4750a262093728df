"""All stitches of an SN-Net on one batch: the one pass against one pass a stitch. Compute only."""

from __future__ import annotations

import sys

import torch

from benchmarks.command import Options, command, random_images, random_snnet
from benchmarks.reference import one_by_one
from benchmarks.timing import Check, Result, alternate, ratio, relative_difference
from stitchkit.networks.mode import unfused_attention


@torch.no_grad()
def measure(options: Options) -> Result:
    """Time `forward_all`, each stitch alone with attention unfused (the reference), and what the ratio is made of."""
    model = random_snnet(options, slice(2) if options.quick else slice(None))
    batch = 2 if options.quick else 4 if options.device == "cpu" else 64
    images = random_images(model, batch)

    def ours() -> torch.Tensor:
        return torch.stack(list(model.forward_all(images).values()))

    def reference() -> torch.Tensor:
        with unfused_attention(model):
            return one_by_one(model, images)

    ways = {
        "ours": ours,
        "reference": reference,
        "one by one, fused": lambda: one_by_one(model, images),
    }
    seconds, logits = alternate(ways, rounds=3, quick=options.quick, device=options.device)
    difference = relative_difference(logits["ours"], logits["reference"])
    return Result(
        "evaluate",
        f"{len(model.space)} stitches of {len(model.anchors)} anchors, batch {batch}, {options.label}",
        seconds,
        (Check("logits, relative to the largest", difference, 1e-4),),
        {
            "ratio_one_pass_alone": ratio(seconds, "one by one, fused", "ours"),
        },
    )


if __name__ == "__main__":
    sys.exit(command(measure, __doc__, devices=("cpu", "cuda")))
