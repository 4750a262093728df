"""Latency of one extracted stitch against the same blocks written by hand."""

from __future__ import annotations

import sys

import torch

from benchmarks.command import Options, command, random_images, random_snnet
from benchmarks.reference import PlainRoute
from benchmarks.timing import Check, Result, Seconds, alternate, ratio


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
        runs, logits = alternate(ways, rounds=rounds, quick=options.quick)
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


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))
