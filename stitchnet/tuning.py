"""Fine-tuning of a composed network, with its own classifier."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from stitchkit.errors import InputError
from stitchnet.data import Batches, batches
from stitchnet.net import Net

_EPOCHS, _BATCH, _LR, _WEIGHT_DECAY = 8, 64, 1e-3, 0.05


def fine_tune(net: Net, train: Batches, validation: Batches, *, seed: int) -> Iterator[float]:
    """Train all weights by AdamW with a cosine schedule; gives the accuracy in percent, at first and after each epoch.

    Args:
        net: It is changed.
        train: Images and labels to train on, as they are.
        validation: What the accuracy is of.
        seed: Of the order of the images.

    Raises:
        InputError: If the network has fewer outputs than there are classes.
    """
    device = next(net.parameters()).device
    images, labels = (values.to(device) for values in _whole(train))
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), _LR, weight_decay=_WEIGHT_DECAY)
    yield _accuracy(net, validation)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS * -(-len(images) // _BATCH))
    for _ in range(_EPOCHS):
        net.train()
        for chosen in torch.split(torch.randperm(len(images), generator=random), _BATCH):
            if len(chosen) > 1:  # batch norms of maps of one position need two images
                loss = cross_entropy(net(images[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()
        yield _accuracy(net.eval(), validation)


def _whole(dataset: Batches) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(batches(dataset))
    return torch.cat([images for images, _ in parts]), torch.cat([torch.as_tensor(labels) for _, labels in parts])


def _accuracy(net: Net, validation: Batches) -> float:
    outputs, labels = net.outputs(validation)
    if outputs.shape[1] <= labels.max():
        raise InputError(f"'{net}' has {outputs.shape[1]} outputs and the images more classes; take networks of theirs")
    return 100 * float((outputs.argmax(1) == labels).mean())
