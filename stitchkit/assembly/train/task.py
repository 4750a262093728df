"""A step of a job: its losses, main and auxiliary, and its accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from stitchkit.assembly.train.optim import Loss
from stitchkit.distributed import sum_over_ranks
from stitchkit.engine.task import Task
from stitchkit.errors import InputError, unknown
from stitchkit.networks.mode import evaluating
from stitchkit.networks.slices import snapshot

Labels = tuple[torch.Tensor, ...]
"""Labels of each task; the tasks' images follow one another in the batch."""


class Captured:
    """The last output of a submodule of a network, in training steps or else in tests.

    Errors begin with the `place` of the setting that names it.
    """

    def __init__(self, network: nn.Module, output: str, place: str, *, training: bool):
        modules = dict(network.named_modules())
        if not output or output not in modules:
            raise InputError(f"{place}.output: {unknown('submodule', output, list(modules)[1:])}")
        self._place = f"{place}.output"
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


def output_of(outputs: Any, number: int) -> torch.Tensor:
    """The output of a network for one task: its own, or the one that all tasks share."""
    chosen: torch.Tensor = outputs[number] if isinstance(outputs, list | tuple) else outputs
    return chosen


def split(outputs: object, labels: Labels) -> list[torch.Tensor]:
    """The rows of each task from its output `[B, num_classes]`, or from the one that all tasks share."""
    parts, start = [], 0
    for number, own in enumerate(labels):
        parts.append(output_of(outputs, number)[start : start + len(own)])
        start += len(own)
    return parts


class JobTask(Task):
    """Classification by an assembly, with one loss per task and auxiliary losses of inner outputs.

    Args:
        network: Images `[B, C, H, W]` to logits, or to a list with the logits of each task.
        losses: Loss of each task; the main loss is their mean.
        further: Auxiliary losses; the total is the weighted mean, in which the main loss has weight 1.
        device: The device of the sums.
    """

    def __init__(
        self, network: nn.Module, losses: Sequence[Loss], further: Sequence[WeightedLoss] = (), *, device: torch.device
    ):
        super().__init__(network, losses[0], device=device, verbose=False)
        self.losses = losses
        self.further = further
        self.last = {"loss": torch.zeros((), device=device), "accuracy": torch.zeros(len(losses), device=device)}
        # Hits and images of each task since `forget`, in float64, because float32 cannot count beyond 2^24.
        self._sums = torch.zeros(len(losses), 2, dtype=torch.float64, device=device)

    def forward(self, images: torch.Tensor, labels: Labels, _route: int | None = None) -> dict[str, object]:
        """`loss` and `output`, the logits of each task, of images `[B, C, H, W]` ordered by task."""
        outputs = split(self.trainable_module(images), labels)
        total = self._mean(outputs, labels, self.losses)
        weight = 1.0
        for aux in self.further:
            total = total + aux.weight * self._mean(split(aux.of.take(), labels), labels, [aux.loss] * len(labels))
            weight += aux.weight
        self._count(total / weight, outputs, labels)
        return {"loss": total / weight, "output": outputs}

    @staticmethod
    def _mean(outputs: Sequence[torch.Tensor], labels: Labels, losses: Sequence[Loss]) -> torch.Tensor:
        # In half precision, the exponentials of a loss would overflow.
        found = [loss(output.float(), own) for loss, output, own in zip(losses, outputs, labels, strict=True)]
        return torch.stack(found).mean()

    @torch.no_grad()
    def _count(self, loss: torch.Tensor, outputs: Sequence[torch.Tensor], labels: Labels) -> None:
        hits = torch.stack([(output.argmax(1) == own).sum() for output, own in zip(outputs, labels, strict=True)])
        # Filled on the device: copying a list there would make the host wait for the GPU.
        counts = torch.stack([hits.new_full((), len(own)) for own in labels])
        self._sums += torch.stack([hits, counts], dim=1)
        self.last["loss"].copy_(loss.detach())
        self.last["accuracy"].copy_(hits / counts)

    def counters(self) -> dict[str, torch.Tensor]:
        """Hits and images of the epoch, and the figures of its last batch."""
        return {"sums": self._sums, **self.last}

    def accuracies(self) -> list[float]:
        """Accuracy of each task over the training images of all ranks since `forget` was called."""
        return [hits / max(count, 1) for hits, count in sum_over_ranks(self._sums.clone()).tolist()]

    def forget(self) -> None:
        """Reset the counts."""
        self._sums.zero_()


def rehearse(task: JobTask, side: int, classes: Sequence[tuple[str, int]]) -> list[str]:
    """Run a task once on blank images before training, to check that outputs and losses fit the data.

    `classes` are the name and number of classes of each data set. The task is not yet distributed.

    Returns:
        Names of trainable parameters that the loss does not depend on.
    """
    network = task.network
    images = torch.zeros(2 * len(classes), 3, side, side, device=task.device)
    labels = tuple(torch.zeros(2, dtype=torch.long, device=task.device) for _ in classes)
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    with evaluating(network):  # in training mode, norms would count the blank images
        outputs = network(images)
        if isinstance(outputs, list | tuple) and len(outputs) != len(classes):
            raise InputError(
                f"the network has {len(outputs)} outputs for {len(classes)} data sets; it needs one per data set"
            )
        for number, (name, count) in enumerate(classes):
            shape = list(output_of(outputs, number).shape)
            if len(shape) != 2 or shape[1] < max(count, 1):
                raise InputError(
                    f"the network returns {shape[1:]} per image, but data set '{name}' has {count} classes; "
                    "end it with a part that returns one value per class, such as head: {ClassifierHead: {}}"
                )
        try:
            loss = task(images, labels)["loss"]
            if trained:
                loss.backward()
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(f"train_config.loss_fn: a loss rejects outputs and labels: {error}") from error
    unused = [name for name, parameter in trained.items() if parameter.grad is None]
    network.zero_grad(set_to_none=True)
    task.forget()
    return unused
