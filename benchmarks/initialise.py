"""Closed-form fit of all stitching layers: sums over batches against a pseudo-inverse per pair on stored features."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch

from benchmarks.frame import Check, Options, Result, command, random_images, random_snnet, vits
from stitchkit import SNNet, fit_stitching_layers
from stitchkit.model.onepass import LiveBytes

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
    seconds, maps = options.alternate(ways, rounds=3)
    # Relative to the whole map, since single weights may be near zero.
    distances = [torch.dist(maps["ours"][layer], wanted) / wanted.norm() for layer, wanted in maps["reference"].items()]
    peaks = {}
    for count in (few, many):
        with LiveBytes() as live:
            fit_stitching_layers(model, _batches(model, count, batch))
        peaks[count] = live.peak
    return Result(
        "initialise",
        f"{len(model.space.layers)} pairs, {len(distances)} layers, {few} images in batches of {batch}, float32, "
        f"{options.label}",
        seconds,
        (
            Check("maps, Frobenius norm relative to the reference's", torch.stack(distances).max().item(), 1e-3),
            Check(
                f"peak memory of ours, {many} images against {few}, relative", abs(peaks[many] / peaks[few] - 1), 0.1
            ),
        ),
        {f"peak_mib_{count}_images": peak / 2**20 for count, peak in peaks.items()},
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
        assert isinstance(transform, torch.nn.Linear | torch.nn.Conv2d)
        assert transform.bias is not None
        maps[layer] = torch.cat([transform.weight.flatten(1).T, transform.bias[None]])
    return maps


@torch.no_grad()
def pseudo_inverses(model: SNNet, batches: Iterable[torch.Tensor]) -> Maps:
    """The maps of the stitching layers: a float32 pseudo-inverse for each pair, on stored features.

    Pairs that share a layer are averaged.

    Source: SN-Net, equation 4.
    """
    vits(model)
    # Every feature of every image at once, as published; the memory that takes is what ours avoids.
    stored: dict[tuple[str, int], list[torch.Tensor]] = defaultdict(list)
    for images in batches:
        for label, anchor in model.views.items():
            x = anchor[0](images)
            stored[label, 0].append(x)
            for number, block in enumerate(anchor.blocks, start=1):
                x = block(x)
                stored[label, number].append(x)
    features = {place: torch.cat(parts).flatten(0, 1) for place, parts in stored.items()}
    maps: dict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
    for joint, layer in model.space.layers.items():
        x = features[joint.front, joint.front_block + 1]
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        maps[layer].append(torch.linalg.pinv(x) @ features[joint.end, joint.end_block])
    return {layer: torch.stack(found).mean(0) for layer, found in maps.items()}


if __name__ == "__main__":
    raise SystemExit(command(measure, __doc__))
