"""A step of a job: its losses, main and auxiliary, and its accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn

from stitchkit.assembly.train.metrics import loss_names
from stitchkit.assembly.train.optim import Loss
from stitchkit.display import counted
from stitchkit.distributed import sum_over_ranks
from stitchkit.engine.task import Task
from stitchkit.errors import InputError, one_line, unknown
from stitchkit.networks.mode import evaluating
from stitchkit.networks.slices import snapshot
from stitchkit.settings.tasks import DenseFacts
from stitchkit.tasks.task import DenseLoss

Labels = tuple[torch.Tensor, ...]
"""Labels `[B]` of each task, or masks or depth maps `[B, H, W]`; the tasks' images follow one another in the batch."""


class Captured:
    """The last output of a submodule of a network, in training steps or else in tests.

    Errors begin with `where` the setting is that names it.
    """

    def __init__(self, network: nn.Module, output: str, where: str, *, training: bool):
        modules = dict(network.named_modules())
        if not output or output not in modules:
            raise InputError(f"{where}.output: {unknown('submodule', output, list(modules)[1:])}")
        self._place = f"{where}.output"
        self._output = output
        self._training = training
        self._value: object = None
        modules[output].register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, value: object) -> None:
        if torch.is_grad_enabled() == self._training:
            self._value = snapshot(value)  # the next layer may work in place

    def take(self) -> object:
        """Return its value in the last forward pass, and forget it, so that none outlives its step."""
        value, self._value = self._value, None
        if value is None:
            raise InputError(f"{self._place}: '{self._output}' does not run in this network; name another submodule")
        return value


class WeightedLoss(NamedTuple):
    """An auxiliary loss of an inner output, with its weight."""

    of: Captured
    loss: Loss
    weight: float


class TaskLoss(NamedTuple):
    """The loss of a task: the mean of its main loss, whose weight is 1, and its auxiliary losses."""

    main: Loss
    further: tuple[WeightedLoss, ...] = ()

    @property
    def names(self) -> list[str]:
        """The published names of its losses."""
        return loss_names(len(self.further))

    @property
    def weight(self) -> float:
        """The sum of all weights."""
        return 1.0 + sum(aux.weight for aux in self.further)


def output_of(outputs: Any, number: int) -> torch.Tensor:
    """The output of a network for one task: its own, or the one that all tasks share."""
    chosen: torch.Tensor = outputs[number] if isinstance(outputs, list | tuple) else outputs
    return chosen


def rows_of(outputs: object, labels: Labels, number: int) -> torch.Tensor:
    """The rows of one task from its output `[B, num_classes, ...]`, or from the one that all tasks share."""
    start = sum(map(len, labels[:number]))
    return output_of(outputs, number)[start : start + len(labels[number])]


class JobTask(Task):
    """Tasks of an assembly, with one loss each.

    The loss is the sum of theirs, each divided by its scale: with several tasks, its value before training.

    Args:
        network: Images `[B, C, H, W]` to an output, or to a list with that of each task: logits `[B, num_classes]`, of
            a dense task `[B, channels, h, w]`.
    """

    def __init__(self, network: nn.Module, losses: Sequence[TaskLoss], *, device: torch.device):
        super().__init__(network, losses[0].main, device=device, verbose=False)
        self.losses = losses
        self.scales = torch.ones(len(losses), device=device)
        count = sum(len(loss.names) for loss in losses)
        self.last = {
            "loss": torch.zeros((), device=device),
            "accuracy": torch.zeros(len(losses), device=device),
            # A single loss is that of the job.
            "losses": torch.zeros(count if count > 1 else 0, device=device),
        }
        # Hits and images of each task since `forget`, in float64, because float32 cannot count beyond 2^24; then the
        # sum over images of each loss.
        self._sums = torch.zeros(len(losses), 2, dtype=torch.float64, device=device)
        self._loss_sums = torch.zeros_like(self.last["losses"], dtype=torch.float64)

    def draw(self, step: int, rank: int) -> tuple[int, ...]:
        """No routes; but losses learn the number of the step."""
        for of in self.losses:
            if isinstance(of.main, DenseLoss):  # which its auxiliary losses share
                of.main.begin(step)
        return super().draw(step, rank)

    def forward(self, images: torch.Tensor, labels: Labels) -> dict[str, object]:
        """`loss` and `output`, that of each task, of images `[B, C, H, W]` ordered by task."""
        outputs = self.trainable_module(images)
        logits = [rows_of(outputs, labels, number) for number in range(len(labels))]
        each = [self.losses_of(number, logits[number], labels) for number in range(len(labels))]
        means = [losses.sum() / of.weight for losses, of in zip(each, self.losses, strict=True)]
        loss = (torch.stack(means) / self.scales).sum()
        self._count(loss, each, logits, labels)
        return {"loss": loss, "output": logits}

    def losses_of(self, number: int, logits: torch.Tensor, labels: Labels) -> torch.Tensor:
        """The losses of a task, times their weights."""
        main, further = self.losses[number]
        own = labels[number]
        # In half precision, the exponentials of a loss would overflow.
        inner = [aux.weight * aux.loss(rows_of(aux.of.take(), labels, number).float(), own) for aux in further]
        return torch.stack([main(logits.float(), own), *inner])

    @torch.no_grad()
    def _count(
        self, loss: torch.Tensor, each: Sequence[torch.Tensor], logits: Sequence[torch.Tensor], labels: Labels
    ) -> None:
        hits = torch.stack([_hits(output, own) for output, own in zip(logits, labels, strict=True)])
        # Filled on the device: copying a list there would make the host wait for the GPU.
        counts = torch.stack([hits.new_full((), len(own)) for own in labels])
        self._sums += torch.stack([hits, counts], dim=1)
        self.last["loss"].copy_(loss.detach())
        self.last["accuracy"].copy_(hits / counts)
        if len(self._loss_sums):
            self.last["losses"].copy_(torch.cat(list(each)))
            self._loss_sums += torch.cat([losses * len(own) for losses, own in zip(each, labels, strict=True)])

    def counters(self) -> dict[str, torch.Tensor]:
        """Hits and images of the epoch, the sums of its losses, and the figures of its last batch."""
        own = {"sums": self._sums, "loss_sums": self._loss_sums, **self.last}
        return {name: counter for name, counter in own.items() if counter.numel()}

    def accuracies(self) -> list[float]:
        """Accuracy of each task over the training images of all ranks since `forget` was called."""
        return [hits / max(count, 1) for hits, count in sum_over_ranks(self._sums.clone()).tolist()]

    def mean_losses(self) -> list[float]:
        """Each loss of each task, times its weight, likewise; empty for a single loss."""
        counts = [max(count, 1) for _, count in sum_over_ranks(self._sums.clone()).tolist()]
        each = [count for count, of in zip(counts, self.losses, strict=True) for _ in of.names]
        sums = sum_over_ranks(self._loss_sums.clone()).tolist()
        return [total / count for total, count in zip(sums, each, strict=False)]

    def forget(self) -> None:
        """Reset the counts."""
        self._sums.zero_()
        self._loss_sums.zero_()


def _hits(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Correctly classified images; 0 for a dense task, which only its losses judge in training."""
    are_hits = output.argmax(1) == labels if labels.ndim == 1 else labels.new_zeros((), dtype=torch.bool)
    return are_hits.sum()


_FIRST_BATCHES = 3  # as many as the published system uses to scale the losses of tasks


def scale_losses(task: JobTask, batches: Iterable[tuple[torch.Tensor, Labels]]) -> None:
    """Set the scale of each of several tasks to the mean of its loss over the first batches of all ranks."""
    sums = torch.zeros(len(task.losses) + 1, dtype=torch.float64, device=task.device)
    with evaluating(task.network):  # with gradients, because auxiliary losses listen to nothing else
        for images, labels in islice(batches, _FIRST_BATCHES):
            outputs = task.network(images)
            for number, of in enumerate(task.losses):
                losses = task.losses_of(number, rows_of(outputs, labels, number), labels)
                sums[number] += losses.detach().sum() / of.weight
            sums[-1] += 1
    *totals, count = sum_over_ranks(sums)
    scales = torch.stack(totals) / count
    task.scales.copy_(torch.where(scales > 0, scales, 1))


class Expected(NamedTuple):
    """What the data of a task need: its name in results, what kind it is if dense, and its number of classes or 1."""

    name: str
    dense: DenseFacts | None
    num_classes: int

    def blank(self, sides: tuple[int, int], device: torch.device) -> torch.Tensor:
        """Labels of two images."""
        if self.dense and not self.dense.has_classes:
            return torch.ones(2, *sides, device=device)
        return torch.zeros(2, *(sides if self.dense else ()), dtype=torch.long, device=device)

    def check(self, output: torch.Tensor) -> None:
        """Refuse what the check of the network, which knows shapes only and asks for enough channels, lets pass."""
        if self.dense is None:
            return
        shape = list(output.shape[1:])
        if shape[0] != self.num_classes:
            needs = self.dense.needs.format(name=self.name, classes=self.num_classes)
            raise InputError(f"the network returns {shape} per image, but {needs}")
        # The loss takes the logarithm of depths.
        if self.dense.least is not None and (least := output.min().item()) < 0:
            raise InputError(
                f"the network returns depths down to {least:.3g} m, but '{self.name}' needs positive ones; end it with "
                "a DepthHead"
            )


def rehearse(task: JobTask, size: tuple[int, int, int], expected: Sequence[Expected]) -> list[str]:
    """Run a task once on blank images before training, to check that outputs and losses fit the data.

    `size` is that of an image. The task is not yet distributed.

    Returns:
        Names of trainable parameters that the loss does not depend on.
    """
    network = task.network
    images = torch.zeros(2 * len(expected), *size, device=task.device)
    labels = tuple(each.blank(size[1:], task.device) for each in expected)
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    with evaluating(network):  # in training mode, norms would count the blank images
        outputs = network(images)
        if isinstance(outputs, list | tuple) and len(outputs) != len(expected):
            raise InputError(
                f"the network has {counted(len(outputs), 'output')} for {counted(len(expected), 'data set')}; it needs "
                "one for each"
            )
        for number, each in enumerate(expected):
            each.check(output_of(outputs, number))
        try:
            loss = task(images, labels)["loss"]
            if trained:
                loss.backward()
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"train_config: a loss rejects outputs and labels: {one_line(error)}; correct the loss_fn and "
                "loss_fn_args of the task, or of one of its aux_losses"
            ) from error
    unused = [name for name, parameter in trained.items() if parameter.grad is None]
    network.zero_grad(set_to_none=True)
    task.forget()
    return unused
