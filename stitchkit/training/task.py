"""The task: a network, its loss, its teacher and the stitch of each step, as one module that the loop runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from timm.data.loader import adapt_to_chs
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task.distillation import DistillationTeacher
from torch import nn
from torch.nn import functional as F

from stitchkit.classes import check_classes
from stitchkit.engine.task import Task
from stitchkit.errors import InputError
from stitchkit.networks.create import create_model
from stitchkit.networks.hub_weights import published_config
from stitchkit.networks.timm_model import TimmModel, as_timm
from stitchkit.networks.trained_with import noted
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.data import weights_dtype
from stitchkit.training.features import FeatureLoss
from stitchkit.training.run_network import run_network
from stitchkit.training.samplers import Sampler

_logger = logging.getLogger(__name__)


class StitchTask(Task):
    """Classification with one stitch of an SN-Net, or with a plain model, optionally taught by a larger network.

    Args:
        model: An SN-Net, or any model of images to logits.
        criterion: Loss function of logits and labels.
        sampler: Draws the stitch of a step; None trains a plain model.
        teacher: Gives the second loss. It runs in evaluation mode without gradients and is not part of checkpoints.
        features: Gives the loss of the final features of every route, beside or in place of the others.
        settings: Whether labels are used, and kind, share and temperature of the teacher's loss.
        mean: The student's mean for the normalisation of images; so is `std`. The teacher has its own.

    Source: SN-Net, section 4.1 and the released recipes: half label loss, half hard distillation.
    """

    def __init__(
        self, model: nn.Module, criterion: nn.Module, *, sampler: Sampler | None = None,
        teacher: DistillationTeacher | None = None, features: FeatureLoss | None = None,
        settings: StitchRecipe | None = None, mean: Sequence[float] = (), std: Sequence[float] = (),
        device: torch.device | None = None, dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        super().__init__(model, criterion, device=device, dtype=dtype, verbose=False)
        self.sampler, self.teacher, self.features = sampler, teacher, features
        self.num_routes = max(sampler.cfg_ids) + 1 if sampler else 0
        self.settings = settings or StitchRecipe()
        if teacher is not None:
            for name, value in (("mean", mean), ("std", std)):
                buffer = torch.tensor(value, device=self.device, dtype=dtype).view(1, -1, 1, 1)
                self.register_buffer(f"student_{name}", buffer, persistent=False)

    def draw(self, step: int, rank: int) -> tuple[int, ...]:
        """The `cfg_id` that the sampler draws; none for a plain model."""
        return () if self.sampler is None else (self.sampler.draw(step, rank),)

    def train(self, mode: bool = True) -> StitchTask:
        """Set the mode; a teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, images: torch.Tensor, labels: torch.Tensor, cfg_id: int | None = None) -> dict[str, torch.Tensor]:
        """`loss` and `output`, logits `[B, num_classes]`, of one stitch, or with None of a plain model.

        Labels of images `[B, C, H, W]` are class numbers `[B]`, or from mixup class probabilities `[B, num_classes]`;
        if the settings do not use them, they may be anything.
        """
        losses = []
        if cfg_id is None:
            output = self.trainable_module(images)
        elif self.features is None:
            output = self.trainable_module(images, cfg_id)
        else:
            output, feature = self.trainable_module(images, cfg_id, with_feature=True)
            losses.append(self.features(images, feature, cfg_id))
            self.features.forget()
        # Distilled networks have a second classifier, for the teacher.
        logits, taught = output if isinstance(output, tuple) else (output, output)
        if self.settings.uses_labels:
            losses.append(self._label_loss(images, labels, logits, taught))
        return {"loss": sum(losses[1:], losses[0]), "output": logits}

    def _label_loss(
        self, images: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor, taught: torch.Tensor
    ) -> torch.Tensor:
        """The loss of logits for labels, and of those for the teacher if there is one."""
        loss: torch.Tensor = self.criterion(logits, labels)
        if self.teacher is None:
            return loss
        alpha = self.settings.distillation_alpha
        with torch.no_grad():
            wanted = self.teacher(self.teacher.normalize_input(images, self.student_mean, self.student_std))
        if self.settings.distillation_type == "hard":
            return (1 - alpha) * loss + alpha * F.cross_entropy(taught, wanted.argmax(1))
        return (1 - alpha) * loss + alpha * self._divergence(taught, wanted)

    def _divergence(self, logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        # tau squared keeps the size of the gradient independent of tau (Hinton et al., section 2)
        tau = self.settings.distillation_tau
        logits, wanted = (F.log_softmax(x / tau, dim=1) for x in (logits, wanted))
        return F.kl_div(logits, wanted, reduction="batchmean", log_target=True) * tau**2


def create_task(
    model: nn.Module, recipe: Recipe, device: torch.device, *, sides: Sequence[int], mean: Sequence[float],
    std: Sequence[float], classes: Sequence[str] = (), sampler: Sampler | None = None,
    features: FeatureLoss | None = None,
) -> StitchTask:  # fmt: skip
    """The task of a recipe: `sides` are height and width of an image, the rest is as in `StitchTask`."""
    stitch, dtype, teacher = recipe.stitch, weights_dtype(recipe), None
    if stitch.distillation_type != "none":
        teacher = create_teacher(stitch, as_timm(model), device, dtype, sides, classes)
    for anchor in run_network(model).networks:
        # Distilled networks have two classifiers: labels teach one, the teacher the other.
        set_distilled = getattr(anchor, "set_distilled_training", None)
        if teacher is not None and set_distilled is not None:
            set_distilled(True)
    return StitchTask(
        model, _create_criterion(recipe), sampler=sampler, teacher=teacher,
        features=features, settings=stitch, mean=mean, std=std, device=device, dtype=dtype,
    )  # fmt: skip


def _create_criterion(recipe: Recipe) -> nn.Module:
    augment, loss = recipe.augment, recipe.loss
    smoothing = 0.0 if augment.mixes else augment.smoothing  # mixed labels are already smooth
    if loss.jsd_loss:
        criterion: nn.Module = JsdCrossEntropy(num_splits=augment.aug_splits, smoothing=smoothing)
    elif loss.bce_loss:
        criterion = BinaryCrossEntropy(
            smoothing, loss.bce_target_thresh, sum_classes=loss.bce_sum, pos_weight=loss.bce_pos_weight
        )
    elif augment.mixes:
        criterion = SoftTargetCrossEntropy()
    else:
        criterion = LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()
    return criterion


def has_same_classes(stitch: StitchRecipe, classes: int) -> bool:
    """Whether a teacher of published weights, if it is one, has as many classes as the data; a warning says if not."""
    assert stitch.teacher_model is not None
    known = published_config(stitch.teacher_model)
    if stitch.teacher_path is not None or known is None or known.num_classes == classes:
        return True
    _logger.warning(
        "teacher '%s' knows %d classes, the data have %d: training continues without it; to use a teacher, set "
        "--teacher-path to weights for these classes",
        stitch.teacher_model, known.num_classes, classes,
    )  # fmt: skip
    return False


def create_teacher(
    stitch: StitchRecipe, student: TimmModel, device: torch.device, dtype: torch.dtype, sides: Sequence[int],
    names: Sequence[str],
) -> DistillationTeacher | None:  # fmt: skip
    """The teacher, or None if its published weights have other classes than the data."""
    assert stitch.teacher_model is not None
    name, path, classes, channels = stitch.teacher_model, stitch.teacher_path, student.num_classes, student.in_chans
    try:
        if not has_same_classes(stitch, classes):
            return None
        network = create_model(name, checkpoint=path, pretrained=True, in_chans=channels, img_size=tuple(sides))
        if (trained := noted(network)) is not None:
            check_classes(trained.classes or (), [names], trained.path, strict=True)
            # The teacher normalises for itself; all else is as for the student.
            prepared = {key: value for key, value in student.pretrained_cfg.items() if key not in ("mean", "std")}
            trained.say_unlike({**prepared, "input_size": (channels, *sides)})
    except InputError as error:
        raise InputError(f"teacher: {error}; or train without one: --distillation-type none") from error
    if network.num_classes != classes:
        what = f"teacher '{path or name}' knows {network.num_classes} classes, the data have {classes}"
        raise InputError(f"{what}; choose another teacher, or set --distillation-type none")
    network.requires_grad_(False)
    teacher = as_timm(network)
    figures = {name: adapt_to_chs(teacher.pretrained_cfg[name], channels) for name in ("mean", "std")}
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, **figures}
    return DistillationTeacher(network.to(device, dtype), device=device, dtype=dtype)
