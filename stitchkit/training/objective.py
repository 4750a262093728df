"""The objective of a training: the losses of a step, each a term with its weight and what it needs of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from timm.task.distillation import DistillationTeacher
from torch import nn
from torch.nn import functional as F

from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.tasks.task import DenseLoss


class StepBatch(NamedTuple):
    """What a step learns from.

    `images` are `[B, C, H, W]`. `labels` are class numbers `[B]`, or from mixup class probabilities `[B, num_classes]`;
    in dense prediction, they are masks or depth maps `[B, H, W]`. A term that does not use them takes anything.
    """

    images: torch.Tensor
    labels: torch.Tensor
    step: int = 0


class RouteOutputs(NamedTuple):
    """What a network makes of images.

    `main` are logits `[B, num_classes]`, or outputs of a dense head `[B, num_outputs, h, w]`. `others` come from the
    second classifier of a distilled network, or from auxiliary heads. The `feature` enters the head; a network gives it
    only where a term needs it.
    """

    main: torch.Tensor
    others: tuple[torch.Tensor, ...] = ()
    feature: torch.Tensor | None = None


@dataclass(frozen=True)
class Term:
    """A loss, called with the `cfg_id` of a route (None for a plain model), its outputs and the batch; a scalar."""

    loss: Callable[[int | None, RouteOutputs, StepBatch], torch.Tensor]
    weight: float = 1.0
    needs_feature: bool = False


class Objective(nn.Module):
    """The weighted sum of terms."""

    def __init__(self, *terms: Term):
        super().__init__()
        self.terms = terms
        # Their tensors move with the task.
        self.losses = nn.ModuleList(term.loss for term in terms if isinstance(term.loss, nn.Module))

    def forward(self, route: int | None, outputs: RouteOutputs, batch: StepBatch) -> torch.Tensor:
        """The loss of a route, a scalar."""
        losses = [term.weight * term.loss(route, outputs, batch) for term in self.terms]
        return sum(losses[1:], losses[0])


class LabelLoss(nn.Module):
    """The loss of the main output for the labels."""

    def __init__(self, criterion: nn.Module):
        super().__init__()
        self.criterion = criterion

    def forward(self, _: int | None, outputs: RouteOutputs, batch: StepBatch) -> torch.Tensor:
        """The loss, a scalar."""
        loss: torch.Tensor = self.criterion(outputs.main, batch.labels)
        return loss


class MapLoss(nn.Module):
    """The loss of the outputs of a dense head and its auxiliary heads for masks or depth maps."""

    def __init__(self, criterion: DenseLoss):
        super().__init__()
        self.criterion = criterion

    def forward(self, _: int | None, outputs: RouteOutputs, batch: StepBatch) -> torch.Tensor:
        """The loss, a scalar; the step says which loss its batches have."""
        self.criterion.begin(batch.step)
        loss: torch.Tensor = self.criterion([outputs.main, *outputs.others], batch.labels)
        return loss


class TeacherLoss(nn.Module):
    """The loss for the answers of a teacher, which runs in evaluation mode without gradients.

    Args:
        teacher: Gives logits of images in a normalisation of its own.
        settings: Kind and temperature of the loss.
        mean: The student's mean for the normalisation of images; so is `std`.

    Source: SN-Net, section 4.1 and the released recipes: hard distillation, at half of the loss.
    """

    def __init__(
        self, teacher: DistillationTeacher, settings: StitchRecipe, *, mean: Sequence[float], std: Sequence[float]
    ):
        super().__init__()
        self.teacher, self._settings = teacher.eval(), settings
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, teacher.mean_kd.new_tensor(value).view(1, -1, 1, 1), persistent=False)

    def train(self, _: bool = True) -> TeacherLoss:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, _: int | None, outputs: RouteOutputs, batch: StepBatch) -> torch.Tensor:
        """The loss, a scalar; distilled networks have a second classifier for the teacher."""
        logits = outputs.others[0] if outputs.others else outputs.main
        with torch.no_grad():
            answers = self.teacher(self.teacher.normalize_input(batch.images, self.mean, self.std))
        if self._settings.distillation_type == "hard":
            return F.cross_entropy(logits, answers.argmax(1))
        return divergence(logits, answers, self._settings.distillation_tau)


def objective_of(
    criterion: nn.Module, settings: StitchRecipe, *, teacher: DistillationTeacher | None = None,
    features: Term | None = None, mean: Sequence[float] = (), std: Sequence[float] = (),
) -> Objective:  # fmt: skip
    """The objective of settings: the criterion of labels, a teacher's share of it, and the `features` of anchors."""
    terms, share = list[Term](), 0.0 if teacher is None else settings.distillation_alpha
    if settings.uses_labels:
        terms.append(Term(LabelLoss(criterion), 1 - share))
        if teacher is not None:
            terms.append(Term(TeacherLoss(teacher, settings, mean=mean, std=std), share))
    return Objective(*terms, *([] if features is None else [features]))


def divergence(logits: torch.Tensor, answers: torch.Tensor, tau: float) -> torch.Tensor:
    """The Kullback-Leibler divergence of logits `[B, num_classes]` from a teacher's, at temperature `tau`; a scalar."""
    # tau squared keeps the size of the gradient independent of tau (Hinton et al., section 2)
    logits, answers = (F.log_softmax(x / tau, dim=1) for x in (logits, answers))
    return F.kl_div(logits, answers, reduction="batchmean", log_target=True) * tau**2
