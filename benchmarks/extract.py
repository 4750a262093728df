"""Latency of one extracted stitch against the same blocks written by hand."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from benchmarks.frame import Check, Options, Result, Seconds, command, random_images, random_snnet, ratio, vits
from stitchkit import SNNet, Stitch


@torch.no_grad()
def measure(options: Options) -> Result:
    """Time the middle stitch of the space at batch 1 and 8."""
    model = random_snnet(options)
    stitch = model.space[len(model.space) // 2]
    ours, reference = model.extract(stitch), PlainRoute(model, stitch).eval()
    seconds: Seconds = {}
    slowdowns: dict[str, float] = {}
    differences = []
    for batch, rounds in ((1, 100), (8, 30)):
        images = random_images(model, batch)
        ways = {"ours": lambda x=images: ours(x), "reference": lambda x=images: reference(x)}
        runs, logits = options.alternate(ways, rounds=rounds)
        differences.append((logits["ours"] - logits["reference"]).abs().max().item())
        slowdowns[f"slowdown_batch_{batch}"] = ratio(runs, "ours", "reference")
        seconds |= runs if batch == 1 else {f"{way}, batch {batch}": times for way, times in runs.items()}
    return Result(
        "extract",
        f"{stitch}, batch 1 and 8, {options.label}",
        seconds,
        (Check("logits, absolute", max(differences), 0),),
        {"slowdown": max(slowdowns.values()), **slowdowns},
    )


class PlainRoute(nn.Module):
    """One route through ViTs with a class token, as written by hand, with copies of the SN-Net's weights."""

    def __init__(self, model: SNNet, stitch: Stitch):
        super().__init__()
        nets = vits(model)
        first, last = nets[stitch.segments[0].anchor], nets[stitch.segments[-1].anchor]
        self.patch_embed = deepcopy(first.patch_embed)
        self.cls_token = deepcopy(first.cls_token)
        self.pos_embed = deepcopy(first.pos_embed)
        steps: list[nn.Module] = []
        for segment, joint in zip(stitch.segments, [None, *stitch.joints], strict=True):
            if joint is not None:
                steps.append(model.layer(joint).transform)
            steps += list(nets[segment.anchor].blocks)[segment.start : segment.stop]
        self.steps = nn.Sequential(*map(deepcopy, steps))
        with_norm = stitch.is_anchor or model.backbone.stitched_final_norm
        self.norm = deepcopy(last.norm) if with_norm else nn.Identity()
        self.head = deepcopy(last.head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to logits `[B, num_classes]`."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        logits: torch.Tensor = self.head(self.norm(self.steps(x))[:, 0])
        return logits


if __name__ == "__main__":
    raise SystemExit(command(measure, __doc__))
