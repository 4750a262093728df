"""The task: a network, its loss, its teacher and the stitch of each step, as one module that the loop runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from timm.data.loader import adapt_to_chs
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task.distillation import DistillationTeacher
from torch import nn
from torch.nn import functional as F

from stitchkit.classes import check_classes, origin_of
from stitchkit.engine.task import Task
from stitchkit.errors import InputError
from stitchkit.model.snnet import SNNet
from stitchkit.networks.create import create_model
from stitchkit.networks.hub_weights import published_config
from stitchkit.networks.timm_model import TimmModel, as_timm
from stitchkit.settings.recipe import Recipe, StitchRecipe
from stitchkit.training.data import weights_dtype
from stitchkit.training.preserve import Replay

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampler:
    """Draws stitches uniformly, one per rank, as in the published training, or one `shared` by all ranks.

    Source: SN-Net, section 3.3 and algorithm 1.
    """

    cfg_ids: Sequence[int]
    seed: int
    shared: bool = False

    def draw(self, step: int, rank: int) -> int:
        """The `cfg_id` that `rank` trains in `step`: a pure function of both, so that a resumed run repeats itself."""
        stream = (self.seed, step, 0 if self.shared else rank)  # a generator with state would have to be in checkpoints
        return self.cfg_ids[int(np.random.default_rng(stream).integers(len(self.cfg_ids)))]


class StitchTask(Task):
    """Classification with one stitch of an SN-Net, or with a plain model, optionally taught by a larger network.

    Args:
        model: An SN-Net, or any model of images to logits.
        criterion: Loss function of logits and labels.
        sampler: Draws the stitch of a step; None trains a plain model.
        teacher: Gives the second loss. It runs in evaluation mode without gradients and is not part of checkpoints.
        replay: Draws anchors more often, and teaches them in place of the teacher.
        settings: Kind, share and temperature of the teacher's loss.
        mean: Mean with which images are normalised for the student, and in the same way `std`; the teacher has its own.

    Source: SN-Net, section 4.1 and the released recipes: half label loss, half hard distillation.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        *,
        sampler: Sampler | None = None,
        teacher: DistillationTeacher | None = None,
        replay: Replay | None = None,
        settings: StitchRecipe | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(model, criterion, device=device, dtype=dtype, verbose=False)
        self.sampler = sampler
        self.num_routes = max(sampler.cfg_ids) + 1 if sampler else 0
        self.teacher = teacher
        self.replay = replay
        self.settings = settings or StitchRecipe()
        if teacher is not None:
            for name, value in (("mean", mean), ("std", std)):
                buffer = torch.tensor(value, device=self.device, dtype=dtype).view(1, -1, 1, 1)
                self.register_buffer(f"student_{name}", buffer, persistent=False)

    def draw(self, step: int, rank: int) -> int | None:
        """The `cfg_id` that the sampler draws; None for a plain model."""
        if self.sampler is None:
            return None
        return self.replay.draw(self.sampler.draw, step, rank) if self.replay else self.sampler.draw(step, rank)

    def train(self, mode: bool = True) -> StitchTask:
        """Set the mode; teachers stay in evaluation mode."""
        super().train(mode)
        for teacher in (self.teacher, self.replay):
            if teacher is not None:
                teacher.eval()
        return self

    def forward(self, images: torch.Tensor, labels: torch.Tensor, cfg_id: int | None = None) -> dict[str, torch.Tensor]:
        """`loss` and `output`, logits `[B, num_classes]`, of one stitch, or with None of a plain model.

        Labels of images `[B, C, H, W]` are class numbers `[B]`, or from mixup class probabilities `[B, num_classes]`.
        """
        output = self.trainable_module(images) if cfg_id is None else self.trainable_module(images, cfg_id)
        # Distilled networks return the logits for the labels and those for the teacher.
        logits, taught = output if isinstance(output, tuple) else (output, output)
        loss, alpha = self.criterion(logits, labels), self.settings.distillation_alpha
        if self.replay is not None and cfg_id in self.replay.anchors:
            wanted = self.replay(images, cfg_id)
            # A copy in evaluation mode gives the mean of both if the network is a distilled one.
            loss = (1 - alpha) * loss + alpha * self._divergence((logits + taught) / 2, wanted)
        elif self.teacher is not None:
            loss = (1 - alpha) * loss + alpha * self._teacher_loss(images, taught)
        return {"loss": loss, "output": logits}

    def _teacher_loss(self, images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        assert self.teacher is not None
        with torch.no_grad():
            wanted = self.teacher(self.teacher.normalize_input(images, self.student_mean, self.student_std))
        if self.settings.distillation_type == "hard":
            return F.cross_entropy(logits, wanted.argmax(1))
        return self._divergence(logits, wanted)

    def _divergence(self, logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        # tau squared keeps the size of the gradient independent of tau (Hinton et al., section 2)
        tau = self.settings.distillation_tau
        given, wanted = (F.log_softmax(x / tau, dim=1) for x in (logits, wanted))
        return F.kl_div(given, wanted, reduction="batchmean", log_target=True) * tau**2


def create_task(
    model: nn.Module, recipe: Recipe, device: torch.device, *, sides: Sequence[int], mean: Sequence[float],
    std: Sequence[float], classes: Sequence[str] = (), sampler: Sampler | None = None,
    class_weights: torch.Tensor | None = None, replay: Replay | None = None,
) -> StitchTask:  # fmt: skip
    """The task of a recipe: `sides` are height and width of an image, the rest is as in `StitchTask`."""
    stitch, dtype, teacher = recipe.stitch, weights_dtype(recipe), None
    if stitch.distillation_type != "none":
        teacher = create_teacher(stitch, as_timm(model), device, dtype, sides, classes)
    for anchor in model.anchors if isinstance(model, SNNet) else [model]:
        # Distilled networks have two classifiers: labels teach one, the teacher the other.
        set_distilled = getattr(anchor, "set_distilled_training", None)
        if teacher is not None and set_distilled is not None:
            set_distilled(True)
    if class_weights is not None:
        class_weights = class_weights.to(device, dtype)
    return StitchTask(
        model, _create_criterion(recipe, class_weights), sampler=sampler, teacher=teacher, replay=replay,
        settings=stitch, mean=mean, std=std, device=device, dtype=dtype,
    )  # fmt: skip


def _create_criterion(recipe: Recipe, class_weights: torch.Tensor | None) -> nn.Module:
    """The loss function of logits and labels."""
    augment, loss = recipe.augment, recipe.loss
    smoothing = 0.0 if augment.mixes else augment.smoothing  # mixed labels are already smooth
    if loss.jsd_loss:
        criterion: nn.Module = JsdCrossEntropy(num_splits=augment.aug_splits, smoothing=smoothing)
    elif loss.bce_loss:
        criterion = BinaryCrossEntropy(
            smoothing, loss.bce_target_thresh, sum_classes=loss.bce_sum, pos_weight=loss.bce_pos_weight
        )
    elif class_weights is not None:
        criterion = nn.CrossEntropyLoss(class_weights, label_smoothing=smoothing)  # of mixed labels too
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
        if (origin := origin_of(network)) is not None:
            check_classes(origin.classes, [names], origin.path, strict=True)
    except InputError as error:
        raise InputError(f"teacher: {error}; or train without one: --distillation-type none") from error
    if network.num_classes != classes:
        raise InputError(
            f"teacher '{path or name}' knows {network.num_classes} classes, the data have {classes}; choose a "
            "teacher for these, or set --distillation-type none"
        )
    network.requires_grad_(False)
    teacher = as_timm(network)
    figures = {name: adapt_to_chs(teacher.pretrained_cfg[name], channels) for name in ("mean", "std")}
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, **figures}
    return DistillationTeacher(network.to(device, dtype), device=device, dtype=dtype)
