"""KLAS: joints between blocks whose predictions agree, as linear probes after every block tell.

Source: KLAS (ICLR 2026) for probes, Theta and Gamma; without labels, ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations, islice
from typing import Any, cast

import torch
from sklearn.cluster import KMeans
from timm.data import create_transform
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, Subset

from stitchkit.data.batches import Batch
from stitchkit.data.decoding import Decoding
from stitchkit.data.labelled_images import Images
from stitchkit.data.loader_processes import explained, outlive_signals, usable_cores
from stitchkit.data.unreadable import CheckedImages, report
from stitchkit.distributed import World
from stitchkit.errors import InputError
from stitchkit.model.snnet import SNNet
from stitchkit.networks.data_config import DataConfig, timm_config
from stitchkit.progress import progress
from stitchkit.routes import Joint

_EPOCHS = 40
_BATCH_SIZE = 64
_LEARNING_RATE = 1e-2
_HELD_OUT = 4
"""Every so many-th image is held out: no probe is trained on it, and Theta is the mean over these."""
_CODES = 512
_LEAST = 1e-12
"""Stands for a Theta of 0 that something is divided by."""

Place = tuple[str, int]
"""An anchor's label and the number of a boundary: 0 is before its first block, `j` after block `j - 1`."""


class SomeImages:
    """Batches of images drawn by a seed, prepared as for evaluation; unreadable ones are replaced.

    Args:
        images: Where they are drawn from, each at most once; of a stream the first.
        prepared: How they are decoded and prepared.
        batch_size: Images in a batch; there are always two batches.
        what: Name of the progress.
    """

    def __init__(
        self, images: Images, prepared: DataConfig, *, count: int, batch_size: int, device: torch.device, seed: int = 0,
        workers: int = 0, what: str = "score",
    ):  # fmt: skip
        chosen: Any
        transform = create_transform(**timm_config(prepared), is_training=False)
        images.decoding = Decoding.of(prepared)
        if isinstance(images, IterableDataset):  # its reader skips bad images itself
            chosen = [(transform(image), label) for image, label in islice(images, count)]
        else:
            checked = CheckedImages(images, num_classes=0, is_training=True)
            checked.transform = transform
            order = torch.randperm(len(checked), generator=torch.Generator().manual_seed(seed))
            chosen = Subset(checked, order[:count].tolist())
        if len(chosen) < 2:
            raise InputError(f"joints are scored on at least 2 images, but there is {len(chosen)}; give more")
        size = min(batch_size, -(-len(chosen) // 2))
        self._loader = DataLoader(chosen, size, num_workers=min(workers, usable_cores()))  # torch warns of more
        outlive_signals(self._loader)
        self._device, self._what = device, what

    def __iter__(self) -> Iterator[Batch]:
        loader = cast(DataLoader[Batch], self._loader)
        with explained("lower --workers"):
            for images, labels in progress(loader, World(0, 1, self._device), self._what, unit="batches"):
                yield images.to(self._device), labels.to(self._device)
        report(loader.dataset)


def joint_routes(model: SNNet) -> dict[Joint, int]:
    """The joints to choose from, each with the `cfg_id` of the stitch that passes through it alone."""
    stitches = model.space.stitches.items()
    return {stitch.joints[0]: cfg_id for cfg_id, stitch in stitches if len(stitch.joints) == 1}


def theta(p: torch.Tensor, q: torch.Tensor) -> float:
    """Mean over images of KL(P || Q), from logarithms of probabilities `[images, classes]`."""
    return max(0.0, float(F.kl_div(q, p, log_target=True, reduction="batchmean")))  # rounding may leave less than 0


@torch.no_grad()
def anchor_thetas(model: SNNet, batches: Iterable[Batch]) -> dict[tuple[str, str], float]:
    """Theta between the outputs of every two anchors, from the cheaper to the costlier."""
    if not model.num_classes:
        raise InputError("anchors without classifiers cannot be compared by their predictions; omit --pair")
    logits: dict[str, list[torch.Tensor]] = defaultdict(list)
    for images, _ in batches:
        for label, anchor in model.views.items():
            logits[label].append(anchor.model(images).double().log_softmax(1))
    outputs = {label: torch.cat(parts) for label, parts in logits.items()}
    return {(front, end): theta(outputs[front], outputs[end]) for front, end in combinations(outputs, 2)}


def klas(model: SNNet, batches: Iterable[Batch], *, seed: int, from_labels: bool = True) -> dict[Joint, float]:
    """Gamma(i, j) = Theta(P_i of the front, P_j of the end) / Theta(P_j, P_j+1 of the end), for block i and before j+1.

    A joint is good where both predict alike, and where the block after it changes much.

    Args:
        model: In evaluation mode.
        seed: Decides the order of the images for the probes, and the clusters.
        from_labels: Probes learn the labels; otherwise the predictions of their own anchor or, where anchors have no
            classifiers, the cluster of the last anchor's feature.
    """
    features, outputs, labels = _read(model, batches)
    if len(labels) < 2 * _HELD_OUT:
        raise InputError(f"klas needs at least {2 * _HELD_OUT} images, but there are {len(labels)}; give more")
    held_out = torch.arange(len(labels)) % _HELD_OUT == 0
    targets = _targets(model, outputs, labels, held_out, seed=seed, from_labels=from_labels)
    predicted = train_probes(features, targets, held_out, seed=seed)
    scores = {}
    for joint in joint_routes(model):
        before, after = predicted[joint.end, joint.end_block], predicted[joint.end, joint.end_block + 1]
        apart = theta(predicted[joint.front, joint.front_block + 1], before)
        scores[joint] = apart / max(theta(before, after), _LEAST)
    return scores


@torch.no_grad()
def _read(
    model: SNNet, batches: Iterable[Batch]
) -> tuple[dict[Place, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """The features at every boundary, averaged over positions `[images, C]`, the anchors' outputs, and the labels.

    A 1x1 convolution commutes with this average, so that probes of it are those of the whole features.
    """
    features: dict[Place, list[torch.Tensor]] = defaultdict(list)
    outputs: dict[str, list[torch.Tensor]] = defaultdict(list)
    labels = []
    for images, known in batches:
        labels.append(known)
        for label, anchor in model.views.items():
            entries = anchor.features(images)
            for entry, x in enumerate(entries):
                rows = x.movedim(anchor.boundaries[entry].layout.channel_dim, -1)
                features[label, entry].append(rows.reshape(len(x), -1, rows.shape[-1]).mean(1))
            outputs[label].append(anchor.module(len(anchor) - 1)(entries[-1]))
    if not labels:
        raise InputError("klas needs images, but there are none; give a folder of images")
    return (
        {key: torch.cat(parts).float() for key, parts in features.items()},
        {label: torch.cat(parts).float() for label, parts in outputs.items()},
        torch.cat(labels),
    )


def _targets(
    model: SNNet, outputs: dict[str, torch.Tensor], labels: torch.Tensor, held_out: torch.Tensor, *, seed: int,
    from_labels: bool,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """What the probes of each anchor learn: probabilities `[images, classes]`."""
    if not from_labels and model.num_classes:
        return {label: logits.softmax(1) for label, logits in outputs.items()}
    if not from_labels:
        feature = next(reversed(outputs.values()))
        known = feature[~held_out].cpu().numpy()
        means = KMeans(min(_CODES, max(2, len(known) // 8)), n_init=1, random_state=seed).fit(known)
        labels = torch.from_numpy(means.predict(feature.cpu().numpy())).to(feature.device)
    one_hot = F.one_hot(labels.long()).float()
    return dict.fromkeys(outputs, one_hot)


def train_probes(
    features: dict[Place, torch.Tensor], targets: dict[str, torch.Tensor], held_out: torch.Tensor, *, seed: int
) -> dict[Place, torch.Tensor]:
    """The predictions of a linear probe at each place for the images held out, as logarithms `[images, classes]`.

    All are trained together, one in each step. The anchors are frozen, so their features are computed only once.

    Args:
        features: `[images, C]` by place.
        targets: Probabilities `[images, classes]` by anchor.
        held_out: `[images]`, true for images that no probe is trained on.
    """
    generator = torch.Generator().manual_seed(seed)
    probes: dict[Place, nn.Linear] = {}
    inputs: dict[Place, torch.Tensor] = {}
    for (label, entry), x in features.items():
        spread, mean = torch.std_mean(x[~held_out], 0)  # of one scale at every block, so that one rate suits all
        inputs[label, entry] = (x - mean) / spread.clamp_min(1e-6)
        probe = nn.Linear(x.shape[1], targets[label].shape[1], device=x.device)
        for parameter in probe.parameters():
            nn.init.zeros_(parameter)  # the problem is convex, so that nothing need be drawn
        probes[label, entry] = probe
    parameters = [parameter for probe in probes.values() for parameter in probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE)
    trained_on = (~held_out).nonzero().flatten()
    for _ in range(_EPOCHS):
        for order in torch.split(torch.randperm(len(trained_on), generator=generator), _BATCH_SIZE):
            chosen = trained_on[order]
            for (label, entry), probe in probes.items():
                optimizer.zero_grad()  # the others have no gradients, and stay as they are
                loss = F.cross_entropy(probe(inputs[label, entry][chosen]), targets[label][chosen])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    with torch.no_grad():
        return {key: probe(inputs[key][held_out]).double().log_softmax(1) for key, probe in probes.items()}
