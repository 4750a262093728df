"""Fine-tuning of a composed network, or of its head alone, its own or a new one: a task of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from pydantic.dataclasses import dataclass
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from stitchkit.data.batches import DirectLoader
from stitchkit.data.loader_processes import explained, usable_cores
from stitchkit.data.unreadable import NO_CLASS
from stitchkit.distributed import World
from stitchkit.engine.checkpoint_files import CheckpointFiles
from stitchkit.engine.checkpoint_schema import anything, check, fields, table, text, whole
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.epochs import TrainedEpoch, check_finite, train_epochs
from stitchkit.engine.loop import Trainer
from stitchkit.engine.recovery import newest_checkpoint
from stitchkit.engine.settings import EngineSettings
from stitchkit.engine.training_state import restore, training_state
from stitchkit.errors import InputError, NotFinite, unknown
from stitchkit.networks.mode import evaluating
from stitchkit.networks.timm_model import classifier_of
from stitchkit.networks.weights import load_content, read_checkpoint
from stitchkit.settings.fields import Count, flag
from stitchkit.training.objective import LabelLoss, Objective, Term
from stitchkit.training.task import StitchTask
from stitchnet.activations import run
from stitchnet.classifier import OutputMap
from stitchnet.compose import CompositionTask
from stitchnet.data import Examples, Stream, batches, image_of, is_sized, label_of, rows_of
from stitchnet.net import Net
from stitchnet.settings import ComposeSettings

EPOCHS = 8
_BATCH, _LR, _WEIGHT_DECAY, _WORKERS = 64, 1e-3, 0.05, 4
_ANYTHING = table(text, anything)
_SCHEMA = fields(
    {"state_dict": _ANYTHING, "optimizer": _ANYTHING, "network": text, "epoch": whole(0), "recorded": whole(0)},
    {"within": _ANYTHING},
)


@dataclass(frozen=True)
class TuningSettings(ComposeSettings):
    """Settings of the experiment `finetune`."""

    head: Literal["own", "new"] | None = flag(
        None,
        "finetune: train the network's own head or a new one; by default own if it has one output for each class",
        strict=None,
    )
    trains: Literal["all", "head"] = flag("all", "finetune: what is trained")
    eval_every: Count | None = flag(None, "finetune: steps between two accuracies; by default those of an epoch")


class Measured(NamedTuple):
    """An accuracy in percent during fine-tuning: its number, and the epochs and images trained before it."""

    number: int
    epoch: int
    samples: int
    acc1: float


class LabelledPairs(Dataset[tuple[torch.Tensor, int]]):
    """The images `[3, H, W]` and labels of a dataset as for `Net.fit`, read one at a time, for torch's loaders.

    Attributes:
        dataset: The dataset, or the pairs of two arrays.
    """

    def __init__(self, dataset: Examples | Stream, label_column: str | None = None):
        rows = rows_of(dataset)
        if not is_sized(rows):
            raise InputError("a streamed dataset cannot be shuffled for training; load it without streaming")
        self.dataset, self._label_column = rows, label_column

    @property
    def is_in_memory(self) -> bool:
        """Whether reading a pair takes no time."""
        return isinstance(self.dataset, list)

    @property
    def num_classes(self) -> int:
        """The number of classes, by the highest label if they have no names; a column of labels has no images."""
        dataset: Any = self.dataset
        column = self._label_column
        if column not in getattr(dataset, "features", ()):
            return 1 + max(int(labels.max()) for _, labels in batches(self))
        labels = dataset.with_format(None).select_columns(column)
        return getattr(labels.features[column], "num_classes", 0) or 1 + max(label_of(row, column) for row in labels)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = self.dataset[index]
        return image_of(row), label_of(row, self._label_column)


class TuningOrder(Sampler[int]):
    """The images in a new order each epoch.

    A last batch of one image is dropped: batch norms of maps with one position need two.

    Attributes:
        num_rates: Number of batches per epoch, including a dropped one.
    """

    def __init__(self, num_images: int, seed: int):
        self._num_images, self._seed, self._epoch = num_images, seed, 0
        self.num_rates = -(-num_images // _BATCH)

    def __len__(self) -> int:
        return self._num_images - (self._num_images % _BATCH == 1)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        random = torch.Generator().manual_seed(self._seed)
        for _ in range(self._epoch + 1):  # one stream for all epochs, wherever training resumes
            order = torch.randperm(self._num_images, generator=random)
        return iter(order[: len(self)].tolist())


class TuningSchedule:
    """torch's cosine schedule by the number of the step.

    torch computes each rate from the previous one, which differs from the closed form in the last digit; the rates are
    taken from its own recursion, all at once, so that a resumed training has the same. A dropped batch has one, too.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, order: TuningOrder):
        self._optimizer, self._order = optimizer, order
        stand_in = torch.optim.SGD([torch.zeros(1)], _LR)
        num_rates = EPOCHS * order.num_rates
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(stand_in, num_rates)
        self._rates = [_LR]
        for _ in range(num_rates):
            stand_in.step()
            cosine.step()
            self._rates.append(stand_in.param_groups[0]["lr"])

    def step_update(self, num_updates: int) -> None:
        """Set the rate for the step that follows `num_updates` steps."""
        epochs, steps = divmod(num_updates, -(-len(self._order) // _BATCH))
        for group in self._optimizer.param_groups:
            group["lr"] = self._rates[epochs * self._order.num_rates + steps]

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Do nothing: the rate depends only on steps."""


def checkpoints(folder: Path) -> CheckpointFiles:
    """The checkpoints of fine-tuning in a folder."""
    return CheckpointFiles(folder, newest="finetune.pth", previous="finetune-previous.pth", kept="finetune-{}.pth")


def finetune(
    net: Net, train: Examples, validation: Examples, label_column: str | None = None, *,
    head: str | None = None, trains: str = "all", every: int | None = None, seed: int = 0,
) -> list[Measured]:  # fmt: skip
    """Train a network for 8 epochs; it then classifies by its own outputs.

    Args:
        net: Changed in place.
        train: A dataset as for `Net.fit`, but not a streamed one; its images are read while they are used.
        validation: The images to measure the accuracy on.
        label_column: Name of the labels in a dataset of `load_hf_dataset`.
        head: `own` or `new`; by default the network's own if it has one output for each class.
        trains: `all`, or only the `head`.
        every: Number of steps between two accuracies; by default those of an epoch.
        seed: Seed of the order of the images and of a new head.

    Returns:
        The accuracies, each with the number of images seen before it.

    Raises:
        InputError: If the images cannot be used, or the network has no head for their classes and can get none.
    """
    for name, value, allowed in (("head", head, (None, "own", "new")), ("trained part", trains, ("all", "head"))):
        if value not in allowed:
            raise unknown(name, value, [one for one in allowed if one])
    if every is not None and every < 1:
        raise InputError(f"every is {every}; it must be at least 1")
    classes = getattr(train, "classes", ())
    pairs = LabelledPairs(train, label_column), LabelledPairs(validation, label_column)
    task = CompositionTask(*pairs, classes=classes)
    found: list[Measured] = []
    with TemporaryDirectory() as folder:
        files = checkpoints(Path(folder))
        train_and_record(net, task, found.append, seed=seed, files=files, head=head, trains=trains, every=every)
    net.classifier = OutputMap("max", tuple((number,) for number in range(_num_classes(task))))
    return found


def train_and_record(
    net: Net, task: CompositionTask, record: Callable[[Measured], None], *, seed: int, files: CheckpointFiles,
    num_recorded: int = 0, head: str | None = None, trains: str = "all", every: int | None = None,
) -> None:  # fmt: skip
    """Train with AdamW and a cosine schedule, resumed from the newest checkpoint; each accuracy is recorded.

    Args:
        net: Changed in place.
        task: The images to train on, which are not augmented, and those to measure the accuracy on.
        record: Called with each accuracy from the start or the resumed position on; the last may come twice.
        seed: Seed of the order of the images and of a new head.
        files: The checkpoints, saved after each epoch and on a signal.
        num_recorded: Number of accuracies already recorded. A checkpoint from beyond them is not used.
        head: `own` or `new`; by default the network's own if it has one output for each class.
        trains: `all` or `head`.
        every: Number of steps between accuracies, by default those of an epoch; the last one is at the end.
    """
    num_classes = 0 if head == "own" else _num_classes(task)
    if num_classes and (head == "new" or num_outputs(net) != num_classes):
        replace_head(net, num_classes, seed=seed % 2**63)
    with _advising(net), training_only(net, trains):
        trainer = _trainer(net, _pairs(task.train), seed, files.folder)
        steps = len(trainer.loader)
        every, num_images = every or steps, len(trainer.loader.sampler)

        def measure(step: int) -> None:
            if step % every == 0 or step == EPOCHS * steps:
                epoch, done = divmod(step, steps)
                samples = epoch * num_images + done * _BATCH
                record(Measured(-(-step // every), epoch, samples, _accuracy(net, task.validation)))

        def save(epoch: int, position: Position | None, state: Mapping[str, object]) -> Path:
            step = epoch * steps + (position.done if position else 0)
            files.write_newest({**state, "network": net.name, "epoch": epoch, "recorded": -(-step // every)})
            return files.last

        def finish(done: TrainedEpoch) -> None:
            check_finite(trainer, done.number)
            # Saved before the accuracy is measured, which a resumed run can do from this file.
            save(done.number + 1, None, training_state(trainer))
            measure((done.number + 1) * steps)

        epoch, position = _resume(trainer, net, files, num_recorded)
        measure(epoch * steps + (position.done if position else 0))
        train_epochs(trainer, range(epoch, EPOCHS), position, save=save, finish=finish, after_step=measure)


def _pairs(images: Examples) -> LabelledPairs:
    return images if isinstance(images, LabelledPairs) else LabelledPairs(images)


def _num_classes(task: CompositionTask) -> int:
    """The number of classes, by the highest label if they have no names."""
    return len(task.classes) or max(_pairs(split).num_classes for split in (task.train, task.validation))


def num_outputs(net: Net) -> int:
    """The number of outputs for an image."""
    with evaluating(net):
        return run(net, net.example()).flatten(1).shape[1]


def head_of(net: Net) -> tuple[str, nn.Linear]:
    """The last linear layer of a network, and its name."""
    name = classifier_of(net)
    layer = net.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise InputError(f"'{net}' has no linear layer, so it has no head to train; use other networks")
    return name, layer


def replace_head(net: Net, num_classes: int, *, seed: int = 0) -> None:
    """Replace the head by a random one for a number of classes.

    All outputs must be those of the head; otherwise the network stays as it is.
    """
    name, old = head_of(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = nn.Linear(old.in_features, num_classes, old.bias is not None)
    net.set_submodule(name, new.to(old.weight.device, old.weight.dtype))
    try:
        fits = num_outputs(net) == num_classes
    except RuntimeError:  # two heads of different sizes
        fits = False
    if not fits:
        net.set_submodule(name, old)
        raise InputError(f"'{net}' does not end in one linear layer, so it gets no new head; use other networks")
    net.classifier, net.num_classes = None, num_classes


@contextmanager
def training_only(net: Net, part: str) -> Iterator[None]:
    """Let training change `all` of a network, or only its `head`, for a while; later, all of it again."""
    if part == "head":
        head = head_of(net)[1]
        net.requires_grad_(False)
        head.requires_grad_()
        vars(net)["train"] = lambda _mode=True: Net.train(net, False)  # norms keep their statistics
    try:
        yield
    finally:
        vars(net).pop("train", None)
        net.requires_grad_()


@contextmanager
def _advising(net: Net) -> Iterator[None]:
    """Name what to change if a loader process dies, or if the training of a network is not finite."""
    try:
        with explained("free some memory and try again"):
            yield
    except NotFinite as error:
        raise InputError(f"'{net}': {error}; train only its head (--trains head), or use other networks") from error


def _trainer(net: Net, pairs: LabelledPairs, seed: int, folder: Path) -> Trainer:
    world = World(0, 1, next(net.parameters()).device)
    device = world.device
    order = TuningOrder(len(pairs), seed)
    if not len(order):
        raise InputError("fine-tuning needs at least two images; add some")
    loader: DataLoader[Any] = DataLoader(
        pairs, _BATCH, sampler=order, pin_memory=device.type == "cuda", generator=torch.Generator(),
        num_workers=0 if pairs.is_in_memory else min(_WORKERS, usable_cores()),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(
        [one for one in net.parameters() if one.requires_grad], _LR, weight_decay=_WEIGHT_DECAY
    )
    return Trainer(
        task=StitchTask(net, Objective(Term(LabelLoss(nn.CrossEntropyLoss(ignore_index=NO_CLASS)))), device=device),
        loader=DirectLoader(loader, device=device, dtype=torch.float32),
        optimizer=optimizer,
        settings=EngineSettings(seed=seed % 2**63, batch_size=_BATCH),  # numpy accepts no negative seeds, unlike torch
        world=world,
        folder=folder,
        schedule=TuningSchedule(optimizer, order),
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
    if content["recorded"] > num_recorded:
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
            f"'{net}' has {outputs.shape[1]} outputs and the images have more classes; train a new head (--head new)"
        )
    return 100 * float((outputs.argmax(1) == labels).mean())
