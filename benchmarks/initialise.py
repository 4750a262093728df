"""Closed-form fit of all stitching layers: sums over batches against a pseudo-inverse per pair on stored features."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from benchmarks.command import Options, command, random_images, random_snnet
from benchmarks.reference import pseudo_inverses
from benchmarks.timing import Check, Result, alternate
from stitchkit import SNNet, fit_stitching_layers
from stitchkit.model.activation_memory import LiveBytes

Maps = dict[tuple[int, ...], torch.Tensor]
"""Maps `[C + 1, out]` by the path of the stitching layer."""


def measure(options: Options) -> Result:
    """Time `fit_stitching_layers` and the pseudo-inverses; measure our peak memory for few and for many images."""
    model = random_snnet(options)
    few, many, batch = (8, 32, 4) if options.quick else (32, 256, 16)

    def ours() -> Maps:
        fit_stitching_layers(model, _batches(model, few, batch))
        return _maps(model)

    ways = {"ours": ours, "reference": lambda: pseudo_inverses(model, _batches(model, few, batch))}
    seconds, maps = alternate(ways, rounds=3, quick=options.quick)
    # Relative to the whole map, since single weights may be near zero.
    distances = [torch.dist(maps["ours"][layer], wanted) / wanted.norm() for layer, wanted in maps["reference"].items()]
    peaks = [_peak_bytes(model, _batches(model, count, batch)) for count in (few, many)]
    return Result(
        "initialise",
        f"{len(model.space.layers)} pairs, {len(distances)} layers, {few} images in batches of {batch}, float32, "
        f"{options.label}",
        seconds,
        (
            Check("maps, Frobenius norm relative to the reference's", torch.stack(distances).max().item(), 1e-3),
            Check(f"peak memory of ours, {many} images against {few}, relative", abs(peaks[1] / peaks[0] - 1), 0.1),
        ),
        {f"peak_mib_{count}_images": peak / 2**20 for count, peak in zip((few, many), peaks, strict=True)},
    )


def _batches(model: SNNet, count: int, size: int) -> Iterator[torch.Tensor]:
    """`count` images, in batches made one by one as by a loader."""
    for seed in range(count // size):
        yield random_images(model, size, seed=seed)


@torch.no_grad()
def _maps(model: SNNet) -> Maps:
    maps = {}
    for joint, layer in model.space.layers.items():
        transform = model.layer(joint).transform
        assert transform.bias is not None
        maps[layer] = torch.cat([transform.weight.flatten(1).T, transform.bias[None]])
    return maps


def _peak_bytes(model: SNNet, batches: Iterator[torch.Tensor]) -> int:
    with LiveBytes() as live:
        fit_stitching_layers(model, batches)
    return int(live.peak)


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))
