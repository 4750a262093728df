"""Fine-tuning of a composed network, with its own classifier: a task of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from stitchkit.data.batches import Batch
from stitchkit.distributed import World
from stitchkit.engine.checkpoint_files import CheckpointFiles
from stitchkit.engine.checkpoint_schema import anything, check, fields, table, text, whole
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.epochs import TrainedEpoch, check_finite, train_epochs
from stitchkit.engine.loop import Trainer
from stitchkit.engine.recovery import newest_checkpoint
from stitchkit.engine.settings import EngineSettings
from stitchkit.engine.training_state import restore, training_state
from stitchkit.errors import InputError
from stitchkit.networks.weights import load_content, read_checkpoint
from stitchkit.train.task import StitchTask
from stitchnet.data import Examples, batches
from stitchnet.net import Net
from stitchnet.task import CompositionTask

EPOCHS = 8
_BATCH, _LR, _WEIGHT_DECAY = 64, 1e-3, 0.05
_ANYTHING = table(text, anything)
_SCHEMA = fields(
    {"state_dict": _ANYTHING, "optimizer": _ANYTHING, "network": text, "epoch": whole(0)}, {"within": _ANYTHING}
)


class TuningLoader:
    """Batches of images in memory, in a new order each epoch.

    A last batch of one image is dropped: batch norms of maps with one position need two.

    Attributes:
        num_rates: Number of batches per epoch, including a dropped one.
    """

    dataset = None

    def __init__(self, dataset: Examples, seed: int, device: torch.device):
        images, labels = zip(*batches(dataset), strict=True)
        self._images = torch.cat(images).to(device)
        self._labels = torch.cat([torch.as_tensor(some) for some in labels]).to(device)
        self._seed, self._epoch = seed, 0
        self.num_rates = -(-len(self._images) // _BATCH)
        self.sampler = self  # the trainer sets its epoch

    def __len__(self) -> int:
        return (len(self._images) + _BATCH - 2) // _BATCH

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        random = torch.Generator().manual_seed(self._seed)
        for _ in range(self._epoch + 1):  # one stream for all epochs, wherever training resumes
            order = torch.randperm(len(self._images), generator=random)
        for chosen in torch.split(order, _BATCH)[: len(self)]:
            yield self._images[chosen], self._labels[chosen]


class TuningSchedule:
    """torch's cosine schedule by the number of the step.

    torch computes each rate from the previous one, which differs from the closed form in the last digit; the rates are
    taken from its own recursion, all at once, so that a resumed training has the same. A dropped batch has one, too.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, loader: TuningLoader):
        self._optimizer, self._loader = optimizer, loader
        stand_in = torch.optim.SGD([torch.zeros(1)], _LR)
        num_rates = EPOCHS * loader.num_rates
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(stand_in, num_rates)
        self._rates = [_LR]
        for _ in range(num_rates):
            stand_in.step()
            cosine.step()
            self._rates.append(stand_in.param_groups[0]["lr"])

    def step_update(self, num_updates: int) -> None:
        """Set the rate for the step that follows `num_updates` steps."""
        epochs, steps = divmod(num_updates, len(self._loader))
        for group in self._optimizer.param_groups:
            group["lr"] = self._rates[epochs * self._loader.num_rates + steps]

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Do nothing: the rate depends only on steps."""


def fine_tune(
    net: Net, task: CompositionTask, record: Callable[[int, float], None], *, seed: int, files: CheckpointFiles,
    num_recorded: int = 0,
) -> None:  # fmt: skip
    """Train all weights with AdamW and a cosine schedule.

    Args:
        net: Changed in place.
        task: The images to train on, which are not augmented, and those to measure the accuracy on.
        record: Called with the number of completed epochs and the accuracy in percent after them, from 0 epochs or
            the resumed position on.
        seed: Seed of the order of the images.
        files: The checkpoints, saved after each epoch and on a signal; training resumes from the newest good one.
        num_recorded: Number of accuracies already recorded. A checkpoint from beyond them is not used.
    """

    def save(epoch: int, _: Position | None, state: Mapping[str, object]) -> Path:
        files.write_newest({**state, "network": net.name, "epoch": epoch})
        return files.last

    def finish(done: TrainedEpoch) -> None:
        check_finite(trainer, done.number)
        # Saved before the accuracy is measured, which a resumed run can do from this file.
        save(done.number + 1, None, training_state(trainer))
        record(done.number + 1, _accuracy(net, task.validation))

    trainer = _trainer(net, task.train, seed, files.folder)
    epoch, position = _resume(trainer, net, files, num_recorded)
    if position is None:
        record(epoch, _accuracy(net, task.validation))
    train_epochs(trainer, range(epoch, EPOCHS), position, save=save, finish=finish)


def _trainer(net: Net, train: Examples, seed: int, folder: Path) -> Trainer:
    device = next(net.parameters()).device
    loader = TuningLoader(train, seed, device)
    if not len(loader):
        raise InputError("fine-tuning needs at least two images; add some")
    optimizer = torch.optim.AdamW(net.parameters(), _LR, weight_decay=_WEIGHT_DECAY)
    return Trainer(
        task=StitchTask(net, nn.CrossEntropyLoss(), device=device),
        loader=loader,
        optimizer=optimizer,
        settings=EngineSettings(seed=seed % 2**63, batch_size=_BATCH),  # numpy accepts no negative seeds, unlike torch
        world=World(0, 1, device),
        folder=folder,
        schedule=TuningSchedule(optimizer, loader),
    )


def _resume(trainer: Trainer, net: Net, files: CheckpointFiles, num_recorded: int) -> tuple[int, Position | None]:
    """Completed epochs by the network's checkpoint, if there is one, and the position within the next epoch, if any."""
    path = newest_checkpoint(files)
    if path is None:
        return 0, None
    content = read_checkpoint(path)
    check(content, _SCHEMA, str(path))
    if content["network"] != net.name:
        return 0, None  # the checkpoint of the previous network
    if content["epoch"] + ("within" in content) > num_recorded:
        return 0, None  # a power cut took the journal's last lines, which are not synced as checkpoints are
    load_content(net, content, path)
    position = restore(content, trainer, path, otherwise="remove it to train from the start")
    files.read(path)
    trainer.start_at(content["epoch"], position.done if position else 0)
    return content["epoch"], position


def _accuracy(net: Net, validation: Examples) -> float:
    outputs, labels = net.outputs(validation)
    if outputs.shape[1] <= labels.max():
        raise InputError(
            f"'{net}' has {outputs.shape[1]} outputs and the images have more classes; compose networks for all classes"
        )
    return 100 * float((outputs.argmax(1) == labels).mean())
