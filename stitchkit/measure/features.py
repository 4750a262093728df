"""Features of many networks on the same images, and what they are worth without a classifier."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, NamedTuple, TypeVar

import torch

from stitchkit.data.batches import Batch
from stitchkit.distributed import World, gather_objects, gather_on
from stitchkit.errors import InputError
from stitchkit.measure.agreement import agreement
from stitchkit.measure.probes import knn, linear_probe

Key = TypeVar("Key")


class FeatureScore(NamedTuple):
    """What a feature is worth, in percent: cosine and linear CKA with the end anchor's, and accuracies with labels."""

    cosine: float
    cka: float
    knn: float | None
    linear: float | None
    images: int

    @property
    def figures(self) -> dict[str, float]:
        """The figures of a row in a ledger."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Halved(NamedTuple):
    """Features in half precision on the CPU, as directions `[N, C]` and lengths `[N]`, so that none overflows."""

    directions: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor) -> Halved:
        """Features `[N, C]`; one that is not finite counts as zeros."""
        x = torch.where(x.isfinite().all(1, keepdim=True), x, 0.0).float()
        lengths = x.double().norm(dim=1).float()
        return cls((x / lengths.clamp_min(1e-30)[:, None]).half().cpu(), lengths.cpu())

    def whole(self, device: torch.device) -> torch.Tensor:
        """The features `[N, C]`."""
        return self.directions.to(device).float() * self.lengths.to(device)[:, None]


class Collected(NamedTuple, Generic[Key]):
    """The features of some networks on this rank's images, and the labels of these `[N]`."""

    features: dict[Key, Halved]
    labels: torch.Tensor


@torch.no_grad()
def collect(
    run: Callable[[torch.Tensor], Mapping[Key, torch.Tensor]],
    batches: Iterable[Batch],
    *,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Collected[Key]:
    """The features `[B, width]` that `run` gives of each network for the batches of this rank."""
    parts, labels = defaultdict[Key, list[Halved]](list), [torch.empty(0, dtype=torch.long)]
    for images, numbers in batches:
        with autocast():
            outputs = run(images)
        for key, feature in outputs.items():
            parts[key].append(Halved.of(feature))
        labels.append(numbers.cpu())
    # One network after the other, so that only one is in memory twice.
    features = {key: Halved(*map(torch.cat, zip(*parts.pop(key), strict=True))) for key in [*parts]}
    return Collected(features, torch.cat(labels))


def in_order(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Values of all images in the order of the data set, where rank r of n has the images r, r + n, ..."""
    places = torch.cat([torch.arange(len(part)) * len(parts) + rank for rank, part in enumerate(parts)])
    return torch.cat([*parts])[places.argsort()]


def judge(
    feature: torch.Tensor, target: torch.Tensor, labels: torch.Tensor,
    bank: torch.Tensor | None = None, bank_labels: torch.Tensor | None = None,
) -> FeatureScore:  # fmt: skip
    """Judge the feature of a network on some images; `target` is the anchor's, `[B, C]`.

    Images with label -1 are not counted, unless no image has a label.
    """
    known = labels >= 0
    if known.any():
        feature, target, labels = feature[known], target[known], labels[known]
    close, accuracies = agreement(feature, target), dict[str, float]()
    if bank is not None and bank_labels is not None and known.any() and (bank_labels >= 0).any():
        bank, bank_labels = bank[bank_labels >= 0], bank_labels[bank_labels >= 0]
        for name, predict in {"knn": knn, "linear": linear_probe}.items():
            accuracies[name] = 100 * (predict(bank, bank_labels, feature) == labels).double().mean().item()
    return FeatureScore(*close, accuracies.get("knn"), accuracies.get("linear"), len(labels))


def judge_in_turns(
    keys: Sequence[Key], judged: Collected[Key], targets: Mapping[Key, Halved | None], bank: Collected[Key] | None,
    world: World,
) -> Iterator[dict[Key, FeatureScore]]:  # fmt: skip
    """The scores of networks, each judged by one rank that gets its features from all ranks; every rank calls this.

    The features of networks are freed as they are judged. Targets, the anchors' features, are None without images.
    """
    labels = in_order(gather_objects(judged.labels)).to(world.device)
    if not len(labels):
        raise InputError("there is no image to evaluate on; check the validation set")
    bank_labels = in_order(gather_objects(bank.labels)).to(world.device) if bank is not None else None
    for start in range(0, len(keys), world.size):
        turn, score = keys[start : start + world.size], None
        for owner, key in enumerate(turn):
            parts = [judged.features.pop(key, None), targets[key]]
            parts += [bank.features.pop(key, None)] if bank is not None else []
            wholes = [_whole(gather_on(owner, part, world), world) for part in parts]
            if owner == world.rank:
                feature, target, *rest = wholes
                assert feature is not None, "some rank has images"
                assert target is not None, "where the feature is, the anchor's is too"
                score = judge(feature, target, labels, rest[0] if rest else None, bank_labels)
        scores = gather_objects(score)
        yield {key: wholes for key, wholes in zip(turn, scores, strict=False) if wholes is not None}


def _whole(parts: Sequence[Halved | None], world: World) -> torch.Tensor | None:
    """The features of all ranks' images; None on ranks that did not get them."""
    some = [part for part in parts if part is not None]
    if not some:
        return None
    empty = Halved(some[0].directions[:0], some[0].lengths[:0])
    every = [empty if part is None else part for part in parts]
    return Halved(*map(in_order, zip(*every, strict=True))).whole(world.device)
