"""Optimizer, learning rate and schedule of a recipe, all of them timm's."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from timm import optim as timm_optim
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import scheduler_kwargs
from torch import nn

from stitchkit.engine.loop import steps_of
from stitchkit.engine.training_state import MOST_EPOCHS
from stitchkit.errors import InputError, one_line, unknown
from stitchkit.settings.recipe import OptimRecipe, Recipe
from stitchkit.training.run_network import run_network

_logger = logging.getLogger(__name__)


def learning_rate(optim: OptimRecipe, total_batch: int) -> float:
    """The learning rate: as set, or the base rate scaled by the images per step over all ranks, as in timm."""
    if optim.lr is not None:
        return optim.lr
    ratio = total_batch / optim.lr_base_size
    adaptive = any(part in optim.opt.lower() for part in ("ada", "lamb"))
    if (optim.lr_base_scale or ("sqrt" if adaptive else "linear")) == "sqrt":
        ratio **= 0.5
    return optim.lr_base * ratio


def create_optimizer(model: nn.Module, optim: OptimRecipe, *, lr: float) -> torch.optim.Optimizer:
    """timm's optimizer over the trainable parameters; biases, norms and other 1-d parameters do not decay.

    Parts of an SN-Net may scale the learning rate.
    """
    options: dict[str, Any] = timm_optim.optimizer_kwargs(SimpleNamespace(**vars(optim) | {"lr": lr}))
    if optim.opt_betas is not None:
        options["betas"] = tuple(optim.opt_betas)  # a tuple, as the defaults are: checkpoints are compared with it
    scales = (optim.layer_decay, optim.base_lr_scale, optim.stitch_lr_scale)
    if run_network(model).parts and scales != (None, 1, 1):
        options["param_group_fn"] = partial(_scaled_groups, optim=optim)
    try:
        options |= _fused(optim) | (optim.opt_kwargs or {})
        optimizer: torch.optim.Optimizer = timm_optim.create_optimizer_v2(model, **options)
    except Exception as error:  # optimizers of many authors raise many types
        raise InputError(
            f"timm cannot create optimizer '{optim.opt}': {error}; see timm.optim.list_optimizers()"
        ) from error
    return optimizer


def check_optimizer(optim: OptimRecipe) -> None:
    """Refuse an optimizer or arguments that timm does not take, before there is a network."""
    names = timm_optim.list_optimizers()
    if optim.opt.lower().split("_")[-1] not in names:  # as `lookahead_adam` is one of Adam
        raise InputError(f"--opt: {unknown('value', optim.opt, names)}")
    create_optimizer(nn.Linear(1, 1), replace(optim, layer_decay=None), lr=learning_rate(optim, 1))


def _fused(optim: OptimRecipe) -> dict[str, bool]:
    """The argument that updates all parameters in one kernel, for Adam and AdamW; other optimizers decide themselves.

    torch's SGD has it too, but fails if a parameter gets its first gradient later than others, as in an SN-Net.
    """
    kind = timm_optim.get_optimizer_class(optim.opt.lower().split("_")[-1], bind_defaults=False)
    is_adam = isinstance(kind, type) and issubclass(kind, torch.optim.Adam)
    is_chosen = bool({"fused", "foreach", "differentiable"} & (optim.opt_kwargs or {}).keys())
    return {"fused": True} if is_adam and not is_chosen else {}


def _scaled_groups(model: nn.Module, *, optim: OptimRecipe) -> list[dict[str, Any]]:
    """Parameter groups of an SN-Net whose parts have their own rates, by timm's `lr_scale`, with the usual decay."""
    of_anchor = timm_optim.param_groups_weight_decay
    if optim.layer_decay is not None:
        of_anchor = partial(
            timm_optim.param_groups_layer_decay, layer_decay=optim.layer_decay, min_scale=optim.layer_decay_min_scale,
            no_opt_scale=optim.layer_decay_no_opt_scale,
        )  # fmt: skip
    scales, groups = {"stitch": optim.stitch_lr_scale, "head": 1.0, "anchor": optim.base_lr_scale}, []
    for kind, part in run_network(model).parts:
        groups_of = of_anchor if kind == "anchor" else timm_optim.param_groups_weight_decay
        scaled = groups_of(part, optim.weight_decay)
        groups += [group | {"lr_scale": scales[kind] * group.get("lr_scale", 1.0)} for group in scaled]
    return groups


class Optimisation(NamedTuple):
    """How the weights of a run are updated: `rate` is the learning rate after warm-up, `epochs` include cool-down."""

    rate: float
    optimizer: torch.optim.Optimizer
    schedule: Scheduler | None
    updates_per_epoch: int
    epochs: int


def create_optimisation(model: nn.Module, recipe: Recipe, *, batches: int, ranks: int) -> Optimisation:
    """Learning rate, optimizer and schedule of a run with `batches` in an epoch of each rank."""
    updates = steps_of(batches, recipe.optim.grad_accum_steps)
    rate = learning_rate(recipe.optim, recipe.data.batch_size * ranks * recipe.optim.grad_accum_steps)
    if recipe.schedule.sched != "none" and rate < recipe.schedule.min_lr:
        _logger.warning(
            "the learning rate, %.3g for this batch size, is below --min-lr %.3g, so it will rise; set one of them",
            rate, recipe.schedule.min_lr,
        )  # fmt: skip
    optimizer = create_optimizer(model, recipe.optim, lr=rate)
    schedule, epochs = create_schedule(recipe, optimizer, updates_per_epoch=updates)
    return Optimisation(rate, optimizer, schedule, updates, epochs)


def create_schedule(
    recipe: Recipe, optimizer: torch.optim.Optimizer, *, updates_per_epoch: int
) -> tuple[Scheduler | None, int]:
    """timm's learning-rate schedule, and the number of epochs with cool-down."""
    settings = scheduler_kwargs(SimpleNamespace(**recipe.flat()))
    if settings["sched"] == "none":
        for group in optimizer.param_groups:  # timm applies `lr_scale` only in its schedules
            group["lr"] *= group.get("lr_scale", 1.0)
        return None, recipe.schedule.epochs
    try:
        schedule, epochs = create_scheduler_v2(optimizer, **settings, updates_per_epoch=updates_per_epoch)
        assert schedule is not None, "the name was checked"
        # The first step after the warm-up and the last have the highest powers.
        for step in (schedule.state_dict()["warmup_t"], epochs * (1 if schedule.t_in_epochs else updates_per_epoch)):
            schedule._get_lr(step)
    except (ArithmeticError, ValueError) as error:
        raise InputError(
            f"timm cannot compute this schedule ({one_line(error)}); bring --lr-cycle-mul, --lr-cycle-decay, "
            "--lr-k-decay and --decay-rate closer to 1, or lower --lr-cycle-limit and --cooldown-epochs"
        ) from error
    if epochs > MOST_EPOCHS:
        causes = "--epochs with --lr-cycle-limit, --lr-cycle-mul and --cooldown-epochs"
        raise InputError(f"{causes} are {epochs:.6g} epochs; at most {MOST_EPOCHS:,} are trained")
    return schedule, int(epochs)
