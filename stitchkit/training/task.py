"""The task: a network, the stitch of each step, and its objective, as one module that the loop runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from timm.data.loader import adapt_to_chs
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task.distillation import DistillationTeacher
from torch import nn

from stitchkit.classes import check_classes
from stitchkit.engine.task import Task
from stitchkit.errors import InputError
from stitchkit.networks.create import create_model
from stitchkit.networks.hub_weights import published_config
from stitchkit.networks.timm_model import TimmModel, as_timm
from stitchkit.networks.trained_with import noted
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.tasks.table import TASKS
from stitchkit.training.data import weights_dtype
from stitchkit.training.objective import MapLoss, Objective, RouteOutputs, StepBatch, Term, objective_of
from stitchkit.training.run_network import run_network
from stitchkit.training.samplers import Sampler

_logger = logging.getLogger(__name__)


class StitchTask(Task):
    """One stitch of an SN-Net, or a plain model, with the objective that it minimises.

    Args:
        model: An SN-Net, or any model of images.
        objective: The loss of a route.
        sampler: Draws the stitch of a step; None trains a plain model.

    Source: SN-Net, algorithm 1.
    """

    criterion: Objective

    def __init__(
        self, model: nn.Module, objective: Objective, *, sampler: Sampler | None = None,
        device: torch.device | None = None, dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        super().__init__(model, objective, device=device, dtype=dtype, verbose=False)
        self.sampler, self._step = sampler, 0
        self.num_routes = max(sampler.cfg_ids) + 1 if sampler else 0

    def draw(self, step: int, rank: int) -> tuple[int, ...]:
        """The `cfg_id` that the sampler draws; none for a plain model."""
        self._step = step
        return () if self.sampler is None else (self.sampler.draw(step, rank),)

    def forward(self, images: torch.Tensor, labels: torch.Tensor, *routes: int) -> dict[str, torch.Tensor]:
        """`loss` and `output` of one route, or of a plain model; images and labels are as in `StepBatch`."""
        return self.learn(self.criterion, images, labels, *routes)

    def learn(
        self, objective: Objective, images: torch.Tensor, labels: torch.Tensor, *routes: int
    ) -> dict[str, torch.Tensor]:
        """`forward` with an objective of its own, for tasks that choose one by the route."""
        feature = None
        if any(term.needs_feature for term in objective.terms):
            output, feature = self.trainable_module(images, *routes, with_feature=True)
        else:
            output = self.trainable_module(images, *routes)
        main, *others = output if isinstance(output, list | tuple) else (output,)
        batch = StepBatch(images, labels, self._step)
        loss = objective(routes[0] if routes else None, RouteOutputs(main, tuple(others), feature), batch)
        return {"loss": loss, "output": main}


def create_task(
    model: nn.Module, recipe: Recipe, device: torch.device, *, sides: Sequence[int], mean: Sequence[float],
    std: Sequence[float], classes: Sequence[str] = (), sampler: Sampler | None = None,
    features: Term | None = None,
) -> StitchTask:  # fmt: skip
    """The task of a recipe.

    `sides` are height and width of an image, `mean` and `std` those of their normalisation; `features` gives the loss
    of the final features of every route, beside or in place of the others.
    """
    stitch, dtype, teacher = recipe.stitch, weights_dtype(recipe), None
    if stitch.distillation_type != "none":
        teacher = create_teacher(stitch, as_timm(model), device, dtype, sides, classes)
    for anchor in run_network(model).networks:
        # Distilled networks have two classifiers: labels teach one, the teacher the other.
        set_distilled = getattr(anchor, "set_distilled_training", None)
        if teacher is not None and set_distilled is not None:
            set_distilled(True)
    objective = objective_of(_create_criterion(recipe), stitch, teacher=teacher, features=features, mean=mean, std=std)
    return StitchTask(model, objective, sampler=sampler, device=device, dtype=dtype)


def create_dense_task(model: nn.Module, recipe: Recipe, device: torch.device, sampler: Sampler | None) -> StitchTask:
    """The task of a recipe for dense prediction."""
    objective = Objective(Term(MapLoss(TASKS[recipe.dense.task].loss(recipe.dense))))
    return StitchTask(model, objective, sampler=sampler, device=device, dtype=weights_dtype(recipe))


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
